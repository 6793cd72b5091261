"""Executors that a file of settings names."""

import pytest

from lightning_znorm.compare import DaskExecutor
from lightning_znorm.errors import ArgumentValueError
from tests.compare.helpers import FLAGS, compare, read_results, refusal

THREADS = ["--compare.executor=concurrent.futures.ThreadPoolExecutor", "--compare.executor.max_workers=2"]


@pytest.mark.slow
def test_runs_of_the_command_on_an_executor(capfd):
    assert compare(*THREADS, "--compare.methods=none", "--compare.confirm=2", "--compare.threads=1") == 0
    assert {result["threads"] for result in read_results("out").values()} == {1}
    error = refusal(capfd, "--compare.methods=none", "--compare.confirm=3", "--compare.threads=2")
    assert "Argument `threads` is 2, but runs in `" in error
    assert "have 1, and the last digits of a sum depend on it" in error


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--compare.executor=nowhere.Executor"], "`compare.executor`: nowhere.Executor: No module named 'nowhere'"),
        (["--compare.executor=torch.nn.Linear"], "does not correspond to a subclass of Executor (torch.nn.Linear)"),
        ([*THREADS[:1], "--compare.executor.workers=2"], "there is no argument `workers`. Did you mean 'max_workers'?"),
        ([*THREADS[:1], "--compare.executor.max_workers=0"], "ThreadPoolExecutor` cannot be started: ValueError: max_"),
        ([*THREADS, "--compare.jobs=0"], "`jobs` to be an integer of at least 1"),
        ([*THREADS, "--compare.threads=0"], "`threads` to be an integer of at least 1"),
        (["--compare.executor=DaskExecutor", "--compare.executor.cluster=no.Cluster"], "class 'no.Cluster' cannot be"),
    ],
)
def test_executors_that_cannot_be_used(flags, message, capsys):
    assert message in refusal(capsys, *FLAGS, *flags)


def test_a_cluster_that_does_not_start():
    pytest.importorskip("distributed")
    with pytest.raises(
        ArgumentValueError, match=r"`dask_jobqueue.SLURMCluster` cannot be started: ValueError: You must"
    ):
        DaskExecutor("dask_jobqueue.SLURMCluster", options={"cores": 1})
    with pytest.raises(ArgumentValueError, match=r"cannot be started: OSError: Timed out"):
        DaskExecutor(options={"address": "tcp://127.0.0.1:1", "timeout": 0.1})
    with pytest.raises(ArgumentValueError, match=r"Expected argument `workers` to be an integer of at least 1"):
        DaskExecutor("distributed.LocalCluster", workers=0)
