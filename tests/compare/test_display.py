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
from tests.compare.helpers import result


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(displays.time, "monotonic", lambda: now[0])
    return now


def task(seed):
    run = Run(Method("none"), Setting(0, {"lr": 0.1}), seed)
    return Task(run, recipe=None, folder=Path(run.key))


def done(content):
    done = task(content["seed"])
    return Event(done, "done", 1.0, result=RunResult.from_json(done.run, content))


def test_a_line_per_run_where_there_is_no_terminal(capsys, clock):
    with Display("runs", total=4, done=1, monitor="val_acc", jobs=2) as display:
        for seed in (0, 1):
            display.show(Event(task(seed), "started"))
        clock[0] += 10
        display.show(Event(task(0), "progress", 0.5, {"val_acc": 0.7}))
        display.show(done(result("none", 0, val=0.75)))
        crash = result("none", 1, status="crashed", error="RuntimeError: [bold]no[/bold]\nmore")
        display.show(done(crash))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "[2/4] none, lr=0.1, seed 0: val_acc 0.75 (2.0 s; 20 s left)",
        "[3/4] none, lr=0.1, seed 1: crashed: RuntimeError: [bold]no[/bold] (2.0 s; 5.0 s left)",
    ]


def test_the_line_has_the_metric_as_last_logged_and_an_early_end(capsys, clock):
    results = [
        result("none", 0, val=0.75, steps=4, ended="early stopping (EarlyStopping)", stopped_early=True),
        result("none", 1, val=0.5),
        result("none", 2, curve=[]),
    ]
    results[1]["curve"].append({"epoch": 2, "step": 2, "metrics": {"val_loss": 1.0}})
    with Display("runs", total=3, done=0, monitor="val_acc", jobs=1) as display:
        for seed, each in enumerate(results):
            display.show(Event(task(seed), "started"))
            display.show(done(each))
    outcomes = [line.partition(": ")[2].rpartition(" (2.0 s")[0] for line in capsys.readouterr().err.splitlines()]
    assert outcomes == ["val_acc 0.75, 4 steps (EarlyStopping)", "val_acc 0.5", "val_acc was not measured"]


def test_the_time_that_is_left(clock):
    with Display("runs", total=10, done=2, monitor="val_acc", jobs=2, seconds=80.0) as display:
        assert display.estimate_seconds_left() == 40  # from the trial: 8 runs of 10 s, two at a time
        for seed in (0, 1):
            display.show(Event(task(seed), "started"))
        clock[0] += 6
        assert display.estimate_seconds_left() == 34
        for seed in (0, 1):
            display.show(Event(task(seed), "progress", 0.5))
        # half of each of two runs in 6 s: 7 more runs at that pace
        assert display.estimate_seconds_left() == pytest.approx(42)


def test_it_may_not_be_known(clock):
    with Display("runs", total=2, done=0, monitor="val_acc", jobs=1) as display:
        assert display.estimate_seconds_left() is None


def test_a_terminal_has_a_bar_for_each_run(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with Display("runs", total=2, done=0, monitor="val_acc", jobs=1) as display:
        display.show(Event(task(0), "started"))
        display.show(Event(task(0), "progress", 0.5, {"val_acc": 0.7}))
        display._progress.refresh()
    shown = capsys.readouterr().err
    assert "none, lr=0.1, seed 0" in shown
    assert "val_acc 0.7" in shown
    assert "50%" in shown
