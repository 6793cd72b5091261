"""The node on which the other tests of this folder run."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.slurm.helpers import ask, connect, find_jobs, state_of, submit, wait_for
from tests.slurm.node import ROOT

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("slurm")]

HOLDS = """
import os, subprocess, sys, time
from pathlib import Path
from tests.slurm.node import start_node

with start_node(Path(sys.argv[1])) as environment:
    subprocess.run(["sbatch", "--wrap=sleep 600"], env={**os.environ, **environment}, check=True)
    time.sleep(600)
"""


def test_a_job_ends_with_its_output():
    job = submit("echo hello from $SLURM_JOB_ID")
    wait_for(lambda: state_of(job) == "COMPLETED")
    assert Path(f"slurm-{job}.out").read_text() == f"hello from {job}\n"


def test_four_jobs_run_side_by_side_until_they_are_cancelled():
    jobs = [submit("echo begun; sleep 600; echo ended") for _ in range(4)]
    outputs = [Path(f"slurm-{job}.out") for job in jobs]
    wait_for(lambda: all(output.exists() and "begun" in output.read_text() for output in outputs))
    ask("scancel", *jobs)
    wait_for(lambda: all(state_of(job) == "CANCELLED" for job in jobs))
    assert not any("ended" in output.read_text() for output in outputs)


def test_the_workers_of_a_dask_cluster_are_jobs():
    with connect(jobs=2) as client:
        assert len(find_jobs()) == 2
        assert client.submit(sum, [1, 2]).result(timeout=60) == 3
        executor = client.get_executor(pure=False, retries=0)
        assert list(executor.map(abs, [-1, -2, 3])) == [1, 2, 3]
    wait_for(lambda: not find_jobs("running,completing"))


def processes_of(node):
    """Those that know the configuration of a node: its daemons and its jobs."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("SLURM_CONF") == f"{node}/slurm.conf":
                found.add(process.name())
    return found


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_when_the_tests_are_ended(tmp_path, end):
    node = tmp_path / "node"
    node.mkdir()
    holder = subprocess.Popen([sys.executable, "-c", HOLDS, node], env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        wait_for(lambda: {"munged", "slurmctld", "slurmd", "sleep"} <= processes_of(node))
        holder.send_signal(end)
        wait_for(lambda: not processes_of(node))
    finally:
        holder.kill()
        holder.wait()
