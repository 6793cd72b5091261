"""Processes, and where they run."""

import json
import math
import multiprocessing
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from lightning_znorm.compare.executors import processes
from lightning_znorm.compare.executors import slots as places
from lightning_znorm.compare.executors.deadline import Deadline, TimeUpError
from lightning_znorm.compare.executors.processes import ProcessExecutor
from lightning_znorm.compare.executors.slots import find_visible_gpus, make_slots
from lightning_znorm.compare.question.methods import Method
from lightning_znorm.compare.question.run import Run, Setting
from lightning_znorm.compare.runs.perform import Task


class Act:
    """A recipe that does something else than to make a run."""

    def __init__(self, act):
        self.act = act

    def make(self, run, folder, callbacks, is_trial):
        self.act(run)
        raise RuntimeError("done")


def find(pid):
    return psutil.Process(pid) if psutil.pid_exists(pid) else None


def tasks(act, count=3):
    runs = [Run(Method("none"), Setting(), seed) for seed in range(count)]
    return [Task(run, Act(act), Path(f"runs/{run.seed}").absolute()) for run in runs]


def results(act, slots=({},), count=3):
    events = ProcessExecutor(slots).execute(tasks(act, count))
    return {event.task.run.seed: event.result for event in events if event.result is not None}


def test_each_task_is_a_process_that_may_die():
    def die(run):
        print("last words of", run.seed, flush=True)
        if run.seed == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if run.seed == 2:
            os._exit(3)

    found = results(die, slots=[{}, {}])
    assert found[0].error == "RuntimeError: done"
    assert found[1].error.startswith("The process ended by signal 9, without a result.")
    assert "last words of 1" in found[1].error
    assert found[2].error.startswith("The process ended with exit status 3")
    assert {result.status for result in found.values()} == {"crashed"}
    assert "last words of 0" in Path("runs/0/log.txt").read_text()


def test_a_dead_run_whose_child_lives_is_not_waited_for():
    """The child holds the connection open, and ends with the run."""

    def leave_a_child(run):
        child = os.fork()
        if child == 0:
            signal.pause()
        Path("child").write_text(str(child))
        os._exit(3)

    found = results(leave_a_child, count=1)
    assert found[0].error.startswith("The process ended with exit status 3")
    _, alive = psutil.wait_procs([p for p in [find(int(Path("child").read_text()))] if p], timeout=300)
    assert not alive


class WhenItRuns(Deadline):
    @property
    def seconds_left(self):
        return 0.0 if Path("pid").exists() else math.inf


def test_a_deadline_ends_what_runs():
    """In whatever thread: it takes no signal."""
    raised = []

    def hang(run):
        Path("pid.tmp").write_text(str(os.getpid()))
        os.replace("pid.tmp", "pid")
        signal.pause()

    def work():
        try:
            list(ProcessExecutor([{}, {}]).execute(tasks(hang, count=2), WhenItRuns()))
        except TimeUpError as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(raised) == 1
    _, alive = psutil.wait_procs([p for p in [find(int(Path("pid").read_text()))] if p], timeout=300)
    assert not alive


def test_a_value_that_pickle_cannot_take_comes_back():
    class Local:
        pass

    task = Task(Run(Method("none"), Setting(0, {"kind": Local}), 0), Act(lambda run: None), Path("runs/0").absolute())
    (result,) = [event.result for event in ProcessExecutor([{}]).execute([task]) if event.result is not None]
    assert result.error == "RuntimeError: done"
    assert json.loads(Path("runs/0/result.json").read_text())["error"] == result.error


def test_a_run_starts_processes_as_the_caller_does():
    def tell(run):
        raise ValueError(multiprocessing.get_start_method())

    assert results(tell, count=1)[0].error == f"ValueError: {multiprocessing.get_all_start_methods()[0]}"


def test_only_the_end_of_a_log_is_read():
    def flood(run):
        for _ in range(30):
            print("x" * 1_000_000)
        print("last words", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    error = results(flood, count=1)[0].error
    assert error.endswith("last words")
    assert len(error) < 100_000


def test_environment_and_threads_of_a_slot():
    def tell(run):
        raise ValueError(f"{os.environ['CUDA_VISIBLE_DEVICES']} {torch.get_num_threads()} {os.getcwd()}")

    found = results(tell, slots=[{"CUDA_VISIBLE_DEVICES": "7"}], count=1)
    assert found[0].error == f"ValueError: 7 {places.count_cores()} {os.getcwd()}"


def test_a_task_may_have_its_own_number_of_threads():
    def tell(run):
        raise ValueError(torch.get_num_threads())

    made = [replace(task, threads=threads) for task, threads in zip(tasks(tell, 2), (3, None), strict=True)]
    events = ProcessExecutor([{}]).execute(made)
    found = [event.result for event in events if event.result is not None]
    assert [result.error for result in found] == [f"ValueError: {number}" for number in (3, places.count_cores())]
    assert [result.threads for result in found] == [3, places.count_cores()]


def test_tasks_that_depend_on_others_are_asked_for_when_these_have_ended():
    """`None` says that there is none yet: with two slots, the second waits for the end of the first task."""
    order = []

    def dependent():
        first, *others = tasks(lambda run: None, 3)
        yield first
        while not order:
            yield None
        yield from others

    for event in ProcessExecutor([{}, {}]).execute(dependent()):
        if event.kind == "done":
            order.append(event.task.run.seed)
        elif event.kind == "started":
            assert event.task.run.seed == 0 or order
    assert sorted(order) == [0, 1, 2]


def test_nothing_is_left_where_no_task_follows():
    assert list(ProcessExecutor([{}, {}]).execute(iter([None, None]))) == []


def test_ends_its_processes_when_it_is_closed():
    def wait(run):
        Path(f"pid{run.seed}").write_text(str(os.getpid()))
        signal.pause()

    events = ProcessExecutor([{}, {}]).execute(tasks(wait))
    next(events), next(events)
    while not (Path("pid0").exists() and Path("pid1").exists() and Path("pid1").read_text()):
        time.sleep(0.01)
    events.close()
    for seed in (0, 1):
        with pytest.raises(ProcessLookupError):
            os.kill(int(Path(f"pid{seed}").read_text()), 0)
    assert not Path("pid2").exists()


@pytest.mark.parametrize(
    ("visible", "count", "expected"),
    [
        (None, 0, []),
        (None, 2, ["0", "1"]),
        ("3,5", 2, ["3", "5"]),
        ("GPU-a1,GPU-b2", 2, ["GPU-a1", "GPU-b2"]),
        ("", 0, []),
        ("0,9", 1, ["0"]),
    ],
)
def test_visible_gpus(monkeypatch, visible, count, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert find_visible_gpus() == expected


@pytest.mark.parametrize(
    ("jobs", "gpus", "accelerator", "expected"),
    [
        (None, 2, "auto", ["0", "1"]),
        (5, 2, "gpu", ["0", "1", "0", "1", "0"]),
        (1, 2, "auto", ["0"]),
        (None, 2, "cpu", [None, None, None]),
        (None, 0, "auto", [None, None, None]),
        (2, 0, "auto", [None, None]),
    ],
)
def test_jobs_are_spread_over_the_gpus(monkeypatch, jobs, gpus, accelerator, expected):
    monkeypatch.setattr(places, "find_visible_gpus", lambda: [str(number) for number in range(gpus)])
    for module in (places, processes):
        monkeypatch.setattr(module, "count_cores", lambda: 6)
    slots = make_slots(jobs, accelerator)
    assert [slot.get("CUDA_VISIBLE_DEVICES") for slot in slots] == expected
    assert ProcessExecutor(slots).threads == 6 // len(expected)


@pytest.mark.parametrize("jobs", [0, -1, 1.5, True])
def test_wrong_number_of_jobs(jobs):
    with pytest.raises(ValueError, match="Expected argument `jobs` to be an integer of at least 1"):
        make_slots(jobs)
