"""What the tests on SLURM share: its programs, and a Dask cluster whose workers are jobs."""

import contextlib
import subprocess
import sys
import time

CLUSTER_OPTIONS = {
    "cores": 1,
    "processes": 1,
    "memory": "4GB",  # Dask ends a worker that has more; PyTorch with all that tests import takes over 1 GB
    "walltime": "00:10:00",
    "python": sys.executable,
    "interface": "lo",
    "local_directory": "local",
    "log_directory": "logs",
    "scheduler_options": {"dashboard_address": ":0"},
}


def ask(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def submit(script):
    """Submit a script, whose output goes to this folder, and return the number of its job."""
    return ask("sbatch", "--parsable", f"--wrap={script}")


def state_of(job):
    return ask("squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={job}")


def find_jobs(states="running"):
    return ask("squeue", "--noheader", f"--states={states}", "--format=%i").split()


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@contextlib.contextmanager
def connect(jobs):
    """A client of a Dask cluster, which has all of its workers when the test begins."""
    from dask_jobqueue import SLURMCluster  # slow to import, which other tests should not wait for
    from distributed import Client

    with (
        SLURMCluster(**CLUSTER_OPTIONS) as cluster,
        Client(cluster) as client,
    ):
        cluster.scale(jobs=jobs)
        client.wait_for_workers(jobs, timeout=60)
        yield client
