"""Whatever does the runs, in whatever order, a comparison finds the same."""

from pathlib import Path

import pandas as pd
import pytest

from lightning_znorm.compare import compare
from lightning_znorm.compare.comparison import Comparison
from lightning_znorm.compare.executors.base import Event
from lightning_znorm.compare.executors.deadline import Deadline, TimeUpError
from lightning_znorm.compare.runs.perform import perform
from lightning_znorm.compare.runs.recipes import FactoryRecipe
from lightning_znorm.compare.runs.result import RunResult
from lightning_znorm.compare.runs.store import Store
from tests.compare.helpers import draft, read_results
from tests.compare.tiny import TinyData, TinyModel

QUICK = {"max_epochs": 1, "accelerator": "cpu"}
ASKED = {"methods": "none,znorm", "sweep": {"lr": [0.1, 0.01]}, "confirm": 6, "monitor": "val_acc"}
SELECTION, RUNS = 2 * 6, 2 * 6 + 2 * 6


class InThisProcess:
    """Does all tasks that there are here, the last one first."""

    jobs = threads = 1

    def __init__(self, losses=()):
        self.losses, self.done = losses, []

    def execute(self, tasks, deadline=None):
        tasks = iter(tasks)
        while batch := [*iter(lambda: next(tasks, None), None)]:
            for task in reversed(batch):
                (deadline or Deadline()).check()
                yield Event(task, "started")
                result = perform(task, lambda share, metrics: None)
                if not task.is_trial:
                    self.done.append(task.run)
                    if task.run.seed in self.losses:
                        result = RunResult(task.run, status="crashed", error="The machine was lost.")
                yield Event(task, "done", 1.0, result=RunResult.from_json(task.run, result.to_json()))


def run(executor, asked=ASKED, **options):
    recipe = FactoryRecipe(TinyModel, TinyData, QUICK)
    store = Store(Path("out"))
    asked = draft(**asked, configured={"lr": 0.1})
    return Comparison(asked, recipe, store, executor, recipe.describe(), **options).run()


@pytest.mark.long
def test_another_executor_gives_the_same_table():
    frame = compare(TinyModel, TinyData, trainer=QUICK, out="processes", jobs=2, **ASKED)
    executor = InThisProcess()
    outcome = run(executor)
    assert outcome.missing_reason is None
    assert len(executor.done) == RUNS
    other = outcome.findings.summary
    timings = ["seconds", "seconds_per_step", "seconds_to_baseline"]
    pd.testing.assert_frame_equal(frame.drop(columns=timings), other.drop(columns=timings))
    verdicts = [verdict.sentence for verdict in outcome.findings.verdicts]
    assert frame.attrs["verdicts"] == verdicts
    again = InThisProcess()
    assert [verdict.sentence for verdict in run(again).findings.verdicts] == verdicts
    assert not again.done


def test_a_selection_comes_before_the_confirmation_and_seeds_after_the_first():
    executor = InThisProcess()
    assert run(executor, {**ASKED, "methods": "none", "confirm": 2}).missing_reason is None
    assert [(run.setting.values["lr"], run.seed) for run in executor.done[:2]] == [(0.01, 0), (0.1, 0)]
    assert {run.seed for run in executor.done[2:6]} == {1, 2}
    assert [run.seed for run in executor.done[6:]] == [4, 3]
    assert len({run.setting.values["lr"] for run in executor.done[6:]}) == 1


def test_losses_are_recorded_and_run_again_on_request():
    asked = {**ASKED, "sweep": None}
    outcome = run(InThisProcess(losses=(4,)), asked)
    statuses = outcome.findings.runs.groupby("seed")["status"].unique().to_dict()
    expected = {seed: ["finished"] for seed in range(3, 9)} | {4: ["crashed"]}
    assert {seed: list(values) for seed, values in statuses.items()} == expected
    assert outcome.findings.verdicts[0].answer == "undecided"
    assert {each["error"] for each in read_results("out").values() if each["seed"] == 4} == {"The machine was lost."}
    again = InThisProcess()
    assert not run(again, asked, retry=False).findings.runs["status"].eq("finished").all()
    assert not again.done
    assert run(again, asked, retry=True).findings.runs["status"].eq("finished").all()
    assert {task.seed for task in again.done} == {4}


@pytest.mark.slow
def test_losses_in_the_selection_leave_other_settings():
    """A setting that lacks a seed is not selected; of none, there is nothing to confirm until it is mended."""
    asked = {**ASKED, "methods": "none", "confirm": 1}
    outcome = run(InThisProcess(losses=(0, 1, 2)), asked)
    assert {*outcome.findings.runs["status"]} == {"crashed"}
    assert outcome.findings.is_finished
    assert not outcome.findings.plan.confirmation
    mended = InThisProcess()
    outcome = run(mended, asked, retry=True)
    assert len(mended.done) == 6 + 1
    assert outcome.findings.runs["status"].eq("finished").all()
    assert outcome.findings.summary.loc["none", "runs"] == 1


def test_an_executor_whose_time_is_up():
    class Late(InThisProcess):
        def execute(self, tasks, deadline=None):
            for number, event in enumerate(super().execute(tasks, deadline)):
                if number == 6:
                    raise TimeUpError
                yield event

    outcome = run(Late(), minutes=10.0)
    assert outcome.is_interrupted
    assert outcome.missing_reason.startswith(f"\nTime is up: 3 of {RUNS} runs are done.")
    assert len(outcome.findings.runs) == 3
    assert not outcome.findings.is_finished
