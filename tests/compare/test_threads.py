"""All runs of a folder have the same number of threads, on which sums depend."""

from pathlib import Path

import pytest

from lightning_znorm.compare.executors import processes, slots
from tests.compare.helpers import ALONE, compare, read_results


@pytest.mark.slow
def test_runs_have_the_threads_of_the_first_ones(monkeypatch):
    for module in (processes, slots):
        monkeypatch.setattr(module, "count_cores", lambda: 6)
    assert compare(*ALONE, "--compare.jobs=2") == 0
    assert compare(*ALONE, "--compare.jobs=1", "--compare.confirm=2") == 0
    assert [result["threads"] for result in read_results("out").values()] == [3, 3]
    assert compare(*ALONE, "--compare.jobs=1", "--compare.out=alone") == 0
    assert [result["threads"] for result in read_results("alone").values()] == [6]
    assert "- threads per run: 3\n" in Path("out/summary.md").read_text()
