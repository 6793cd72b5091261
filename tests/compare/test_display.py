"""The display of progress."""

from pathlib import Path

import pytest

from lightning_znorm.compare import display as displays
from lightning_znorm.compare.display import Display
from lightning_znorm.compare.executors.base import Event
from lightning_znorm.compare.question.methods import Method
from lightning_znorm.compare.question.run import Run, Setting
from lightning_znorm.compare.runs.perform import Task
from lightning_znorm.compare.runs.result import RunResult
from lightning_znorm.compare.runs.schedule import Schedule
from tests.compare.helpers import question, result


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(displays.time, "monotonic", lambda: now[0])
    return now


LR = {"lr": 0.1}


def schedule(count, done=0):
    """Runs at one setting with the seeds from 3 on, the first of which are done."""
    made = Schedule(question(methods="none", sweep={"lr": [0.1]}, confirm=count, configured=LR))
    made.load(lambda run: RunResult.from_json(run, result("none", run.seed, LR)) if run.seed < 3 + done else None)
    assert (made.count_runs(), made.count_done()) == (count, done)
    return made


def task(seed):
    run = Run(Method("none"), Setting(0, LR), seed)
    return Task(run, recipe=None, folder=Path(run.key))


def show_done(display, content):
    """A run has ended."""
    done = task(content["seed"])
    event = Event(done, "done", 1.0, result=RunResult.from_json(done.run, content))
    display._schedule.add(event.result)
    display.show(event)


def test_a_line_per_run_where_there_is_no_terminal(capsys, clock):
    with Display(schedule(4, done=1), monitor="val_acc", jobs=2) as display:
        for seed in (4, 5):
            display.show(Event(task(seed), "started"))
        clock[0] += 10
        display.show(Event(task(4), "progress", 0.5, {"val_acc": 0.7}))
        show_done(display, result("none", 4, LR, val=0.75))
        crash = result("none", 5, LR, status="crashed", error="RuntimeError: [bold]no[/bold]\nmore")
        show_done(display, crash)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "[2/4] none, lr=0.1, seed 4: val_acc 0.75 (2.0 s; 20 s left)",
        "[3/4] none, lr=0.1, seed 5: crashed: RuntimeError: [bold]no[/bold] (2.0 s; 5.0 s left)",
    ]


def test_the_line_has_the_metric_as_last_logged_and_an_early_end(capsys, clock):
    results = [
        result("none", 3, LR, val=0.75, steps=4, ended="early stopping (EarlyStopping)", stopped_early=True),
        result("none", 4, LR, val=0.5),
        result("none", 5, LR, curve=[]),
    ]
    results[1]["curve"].append({"epoch": 2, "step": 2, "metrics": {"val_loss": 1.0}})
    with Display(schedule(3), monitor="val_acc", jobs=1) as display:
        for each in results:
            display.show(Event(task(each["seed"]), "started"))
            show_done(display, each)
    outcomes = [line.partition(": ")[2].rpartition(" (2.0 s")[0] for line in capsys.readouterr().err.splitlines()]
    assert outcomes == ["val_acc 0.75, 4 steps (EarlyStopping)", "val_acc 0.5", "val_acc was not measured"]


def test_the_number_of_runs_is_at_most_that_of_the_selection(capsys, clock):
    """Known once the selection is done: here a setting fails, so that no more seeds of it are tried."""
    asked = question(methods="none", sweep={"lr": [0.1, 0.2]}, confirm=2, configured=LR)
    with Display(Schedule(asked), monitor="val_acc", jobs=1) as display:
        while missing := display._schedule.list_missing():
            run = missing[0]
            failed = run.setting.values["lr"] == 0.2
            each = result("none", run.seed, dict(run.setting.values), val=0.5)
            each["curve"] = [] if failed else each["curve"]
            now = Task(run, recipe=None, folder=Path(run.key))
            event = Event(now, "done", 1.0, result=RunResult.from_json(run, each))
            display._schedule.add(event.result)
            display.show(Event(now, "started"))
            display.show(event)
    lines = [line.partition(",")[0] for line in capsys.readouterr().err.splitlines()]
    assert lines == ["[1/8] none", "[2/4] none", "[3/4] none", "[4/4] none"]


def test_the_time_that_is_left(clock):
    with Display(schedule(10, done=2), monitor="val_acc", jobs=2, seconds=10.0) as display:
        assert display.estimate_seconds_left() == 40  # from the trial: 8 runs of 10 s, two at a time
        for seed in (5, 6):
            display.show(Event(task(seed), "started"))
        clock[0] += 6
        assert display.estimate_seconds_left() == 34
        for seed in (5, 6):
            display.show(Event(task(seed), "progress", 0.5))
        # half of each of two runs in 6 s: 7 more runs at that pace
        assert display.estimate_seconds_left() == pytest.approx(42)


def test_it_may_not_be_known(clock):
    with Display(schedule(2), monitor="val_acc", jobs=1) as display:
        assert display.estimate_seconds_left() is None


def test_a_terminal_has_a_bar_for_each_run(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with Display(schedule(2), monitor="val_acc", jobs=1) as display:
        display.show(Event(task(3), "started"))
        display.show(Event(task(3), "progress", 0.5, {"val_acc": 0.7}))
        display._progress.refresh()
    shown = capsys.readouterr().err
    assert "none, lr=0.1, seed 3" in shown
    assert "val_acc 0.7" in shown
    assert "50%" in shown
