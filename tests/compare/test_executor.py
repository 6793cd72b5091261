"""Whatever does the runs, in whatever order, a comparison finds the same."""

from pathlib import Path

import pandas as pd
import pytest

from lightning_znorm.compare import compare
from lightning_znorm.compare.comparison import Comparison
from lightning_znorm.compare.executors.base import Event
from lightning_znorm.compare.executors.deadline import Deadline, TimeUpError
from lightning_znorm.compare.report.tables import label_settings
from lightning_znorm.compare.runs.perform import perform
from lightning_znorm.compare.runs.recipes import FactoryRecipe
from lightning_znorm.compare.runs.result import RunResult
from lightning_znorm.compare.runs.store import Store
from tests.compare.helpers import question, read_results
from tests.compare.tiny import TinyData, TinyModel

QUICK = {"max_epochs": 1, "accelerator": "cpu"}
ASKED = {"methods": "none,znorm", "sweep": {"lr": [0.1, 0.01]}, "seeds": 2, "monitor": "val_acc"}


class InThisProcess:
    """Does all tasks here, the last one first."""

    jobs = 1

    def __init__(self, losses=()):
        self.losses, self.done = losses, []

    def execute(self, tasks, deadline=None):
        for task in reversed([*tasks]):
            (deadline or Deadline()).check()
            yield Event(task, "started")
            result = perform(task, lambda share, metrics: None)
            if not task.is_trial:
                self.done.append(task.run)
                if task.run.seed in self.losses:
                    result = RunResult(task.run, status="crashed", error="The machine was lost.")
            yield Event(task, "done", 1.0, result=RunResult.from_json(task.run, result.to_json()))


def run(executor, **options):
    recipe = FactoryRecipe(TinyModel, TinyData, QUICK)
    store = Store(Path("out"))
    return Comparison(question(**ASKED), recipe, store, executor, recipe.describe(), **options).run()


@pytest.mark.slow
def test_another_executor_gives_the_same_table():
    frame = compare(TinyModel, TinyData, trainer=QUICK, out="processes", **ASKED)
    executor = InThisProcess()
    outcome = run(executor)
    assert outcome.missing_reason is None
    assert len(executor.done) == 8
    other = label_settings(question(**ASKED), outcome.findings.summary)
    timings = ["seconds", "seconds_per_step"]
    pd.testing.assert_frame_equal(frame.drop(columns=timings), other.drop(columns=timings))
    assert frame.attrs["verdicts"] == outcome.findings.verdicts
    again = InThisProcess()
    assert run(again).findings.verdicts == outcome.findings.verdicts
    assert not again.done


def test_losses_are_recorded_and_run_again_on_request():
    outcome = run(InThisProcess(losses=(1,)))
    statuses = outcome.findings.runs.groupby("seed")["status"].unique().to_dict()
    assert {seed: list(values) for seed, values in statuses.items()} == {0: ["finished"], 1: ["crashed"]}
    assert {each["error"] for each in read_results("out").values() if each["seed"] == 1} == {"The machine was lost."}
    again = InThisProcess()
    assert not run(again, retry=False).findings.runs["status"].eq("finished").all()
    assert not again.done
    assert run(again, retry=True).findings.runs["status"].eq("finished").all()
    assert {task.seed for task in again.done} == {1}


def test_an_executor_whose_time_is_up():
    class Late(InThisProcess):
        def execute(self, tasks, deadline=None):
            for number, event in enumerate(super().execute(tasks, deadline)):
                if number == 6:
                    raise TimeUpError
                yield event

    outcome = run(Late(), minutes=10.0)
    assert outcome.is_interrupted
    assert outcome.missing_reason.startswith("\nTime is up: 3 of 8 runs are done.")
    assert len(outcome.findings.runs) == 3
