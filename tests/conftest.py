import os

# xdist fills the cores: one thread for each test and for each process that a test starts
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
if os.environ.get("GPU_CHECK") != "1":  # the tests that need a GPU are run by themselves, see `make gpu-check`
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["TRITON_INTERPRET"] = "1"  # so that the kernels run on a CPU; read when Triton is imported

import gc
import itertools
import multiprocessing
from unittest import mock

import pytest
import torch

pytest.register_assert_rewrite("tests.compare.helpers", "tests.compare.logged", "tests.compare.ranks")
from tests import warm  # noqa: E402

# below those that systems give away by themselves, and others for each worker: a port that Lightning has found free
# may be taken by another test before DDP uses it
_ports = itertools.count(20000 + 1000 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]))


def pytest_configure(config):
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        warm.share()  # with xdist's workers
    warm.lend_fork_server()


def pytest_collection_finish():
    """What is imported by now is no garbage: `gc.collect()`, in tests and in libraries, need not look at it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def _handles_go_away():
    """Those of `attach` may warn when they do: here, and not in a test of something else."""
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def _isolated(tmp_path, monkeypatch):
    """Each test in a folder and with a port of its own, with the same random numbers and environment.

    DDP in the process of a test sets LOCAL_RANK, with which a script of the next test would take itself for a rank.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MASTER_PORT", str(next(_ports)))
    torch.manual_seed(0)
    with mock.patch.dict(os.environ):
        yield
    for process in (*multiprocessing.active_children(), *warm.started):
        process.kill()  # of a test that has failed or run out of time
    if torch.distributed.is_initialized():
        # a DDP strategy that a test has set up in this process; forked ones would inherit it without its threads
        torch.distributed.destroy_process_group()
