"""Runs on engines: any `concurrent.futures.Executor` gives the same table as the processes of this machine."""

import functools
import os
import pickle
import signal
import subprocess
import time
from concurrent import futures
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import psutil
import pytest

from lightning_znorm.compare import DaskExecutor, compare
from lightning_znorm.compare.executors import remote
from lightning_znorm.compare.runs.claims import COMMANDS
from lightning_znorm.errors import ComparisonError
from tests.compare.helpers import read_results, table_of
from tests.compare.tiny import TinyData, TinyModel

ASKED = {"methods": "none,znorm", "sweep": None, "confirm": 6, "monitor": "val_acc"}
SWEEP = {"lr": [0.1, 0.01]}
ALONE = {"methods": "none", "sweep": None, "confirm": 2, "monitor": "val_acc"}
QUICK = {"max_epochs": 1, "accelerator": "cpu"}
RUNS = {False: 2 * 6, True: 2 * 2 * 3 + 2 * 6}  # by whether there is a sweep


def ask(**options):
    return compare(TinyModel, TinyData, **{"trainer": QUICK, "out": "out", **ASKED, **options})


@contextmanager
def threads():
    with futures.ThreadPoolExecutor(2) as engine:
        yield engine


@contextmanager
def dask(workers=2):
    pytest.importorskip("distributed")
    options = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None}
    with DaskExecutor("distributed.LocalCluster", options=options) as engine:
        yield engine


one_worker = functools.partial(dask, workers=1)  # each takes half a minute of imports


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The tables of the processes of this machine, by sweep."""

    @functools.cache
    def make(is_swept):
        here = Path.cwd()
        os.chdir(tmp_path_factory.mktemp("pool"))
        frame = ask(jobs=2, sweep=SWEEP if is_swept else None)
        os.chdir(here)
        return table_of(frame)

    return make


@pytest.mark.slow
@pytest.mark.parametrize(
    ("start", "is_swept"),
    [(one_worker, False), *(pytest.param(start, True, marks=pytest.mark.long) for start in (threads, dask))],
)
def test_the_same_table(start, is_swept, expected, capfd):
    with start() as engine:
        frame = ask(executor=engine, sweep=SWEEP if is_swept else None)
    assert table_of(frame).equals(expected(is_swept))
    runs = RUNS[is_swept]
    assert len(read_results("out")) == runs
    logs = [path.read_text() for path in Path("out").glob("runs/*/log.txt")]
    assert len(logs) == runs
    assert not [*Path("out").glob("runs/*/.*")]
    assert f"[{runs}/{runs}]" in capfd.readouterr().err


@contextmanager
def processes():
    yield None


@pytest.mark.long
@pytest.mark.parametrize("start", [processes, threads])
def test_a_full_disk_costs_no_finished_run(start):
    Path("small").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", "small"]).returncode:
        pytest.skip("only root can make a file system that is small enough to become full")
    try:
        with start() as engine:
            with pytest.raises(OSError, match=r"cannot be written \(No space left on device\)\. Finished runs are"):
                ask(executor=engine, out="small/out")
            before = read_results("small/out")
            subprocess.run(["mount", "-o", "remount,size=16m", "small"], check=True)
            ask(executor=engine, out="small/out")
        assert 0 < len(before) < RUNS[False]
        assert before.items() <= read_results("small/out").items()
        assert not Path("small/out", COMMANDS).exists()
    finally:
        subprocess.run(["umount", "--lazy", "small"], check=True)


class Losing(futures.ThreadPoolExecutor):
    """Loses the first attempts of each run."""

    def __init__(self, losses):
        super().__init__(1)
        self.losses, self.submitted = losses, []

    def submit(self, function, request):
        token = pickle.loads(request)["token"]  # of a run, or of its trial
        self.submitted.append(token)
        if self.submitted.count(token) <= self.losses:
            return super().submit(self.lose)
        return super().submit(function, request)

    def lose(self):
        raise ConnectionError("the machine is gone")


@pytest.mark.long
def test_a_lost_run_is_started_once_more():
    with Losing(losses=1) as engine:
        frame = ask(executor=engine, **ALONE)
    assert frame["runs"].tolist() == [2]
    assert len(engine.submitted) == 2 * 3, "a trial and two runs"
    assert {engine.submitted.count(token) for token in engine.submitted} == {2}


def test_a_run_that_is_lost_twice_has_crashed():
    with (
        Losing(losses=2) as engine,
        pytest.raises(ComparisonError, match=r"lost 2 times: ConnectionError: the machine"),
    ):
        ask(executor=engine, **ALONE)


def test_what_is_no_executor():
    with pytest.raises(TypeError, match=r"`executor` to be a `concurrent.futures.Executor`.*client.get_executor"):
        ask(executor=4)
    assert not Path("out").exists()


class Failing(futures.ThreadPoolExecutor):
    """Its workers cannot read what they are sent."""

    def submit(self, function, request):
        return super().submit(exec, "import lightning_znorm_of_the_command")


def test_a_worker_without_a_package():
    with (
        Failing(1) as engine,
        pytest.raises(
            ComparisonError, match=r"A worker .*`Failing` cannot import .*No module named 'lightning_znorm_of"
        ),
    ):
        ask(executor=engine)


def test_an_executor_that_is_shut_down():
    engine = futures.ThreadPoolExecutor(1)
    engine.shutdown()
    with pytest.raises(ComparisonError, match=r"`ThreadPoolExecutor` takes no runs any more: RuntimeError"):
        ask(executor=engine)


def test_a_worker_with_other_versions(monkeypatch):
    expected = remote.describe_installation()
    monkeypatch.setattr(remote, "describe_installation", lambda: {**expected, "torch": "1.0"})
    with pytest.raises(ComparisonError, match=r"A worker on `.*` has other versions: torch 1\.0 \(the command has"):
        remote._check_installation(expected)


def find_runs():
    """Processes of runs: the children of the fork servers of the processes beside workers, unless they have ended."""
    servers = [p for p in psutil.Process().children() if "lightning_znorm.compare.executors.run_server" in p.cmdline()]
    forked = [child for server in servers for child in server.children()]
    runs = [run for process in forked for run in process.children()]
    return [run for run in runs if _is_alive(run)]


def _is_alive(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE  # what it is until its fork server takes note of its end
    except psutil.NoSuchProcess:
        return False


@pytest.mark.long
def test_runs_end_when_nobody_waits_for_them():
    engine, watcher = futures.ThreadPoolExecutor(2), futures.ThreadPoolExecutor(1)

    def interrupt():
        while len(find_runs()) < 2 or not [*Path("out").glob("runs/*/log.txt")]:
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    watcher.submit(interrupt)
    with pytest.raises(KeyboardInterrupt):
        ask(executor=engine, **{**ALONE, "trainer": {"max_epochs": 100_000, "accelerator": "cpu"}})
    watcher.shutdown()
    engine.shutdown()  # waits for the workers, which wait for the end of their runs
    assert not find_runs()
    assert not read_results("out")
    assert not [*Path("out").glob("runs/*/.*.tmp")]


@pytest.mark.long
def test_a_worker_that_is_killed_costs_no_run(expected):
    """Dask starts the task again, on the other worker or on the one that takes its place."""
    with dask() as engine, futures.ThreadPoolExecutor(1) as watcher:
        worker = psutil.Process(engine.submit(os.getpid).result())

        def kill():
            while not read_results("out"):
                time.sleep(0.1)
            worker.kill()

        watcher.submit(kill)
        frame = ask(executor=engine)
    assert table_of(frame).equals(expected(False))
    assert not worker.is_running()


@pytest.mark.long
def test_an_engine_that_dies_leaves_what_is_finished():
    engine, watcher = futures.ProcessPoolExecutor(1, get_context("spawn")), futures.ThreadPoolExecutor(1)
    worker = psutil.Process(engine.submit(os.getpid).result())

    def kill():
        while not read_results("out"):
            time.sleep(0.1)
        worker.kill()  # breaks the pool

    watcher.submit(kill)
    with pytest.raises(
        ComparisonError, match=r"takes no runs any more: BrokenProcessPool.*Finished runs are kept: start"
    ):
        ask(executor=engine)
    before = read_results("out")
    assert 0 < len(before) < RUNS[False]
    with threads() as another:
        ask(executor=another)
    assert before.items() <= read_results("out").items()
