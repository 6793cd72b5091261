"""Sharded gradients in real processes under gloo; the cases are in the modules that each launch names."""

import pytest

from tests.sharded.ranks import launch


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("module", ["arithmetic", "loops", "trainers"])
def test_cases(module, count):
    failures, _ = launch(f"tests.sharded.{module}", count)
    assert not failures, "\n".join(failures)
