"""The cases of `tests/sharded` that one process can run, with NCCL on a GPU."""

import os
import subprocess
import sys

import pytest

from tests.sharded.ranks import launch


def run_alone(script, count):
    assert count == 1
    environment = {"LOCAL_RANK": "0", "WORLD_SIZE": "1", "TESTS_SHARDED_DEVICE": "cuda"}
    command = [sys.executable, str(script)]
    return [subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)]


@pytest.mark.parametrize("module", ["arithmetic", "loops", "trainers"])
def test_one_process_with_nccl(module):
    failures, _ = launch(f"tests.sharded.{module}", 1, run_alone)
    assert not failures, "\n".join(failures)
