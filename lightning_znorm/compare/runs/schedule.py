"""The runs to do, as they follow from the results so far."""

import math
from collections.abc import Callable

from lightning_znorm.compare.question.question import Question
from lightning_znorm.compare.question.run import Run
from lightning_znorm.compare.question.stages import Plan, make_plan
from lightning_znorm.compare.runs.result import RunResult


class Schedule:
    """Hands out the runs of a question.

    Args:
        question: The question.

    Attributes:
        question: The question.
        plan: The runs that follow from the results so far.

    """

    def __init__(self, question: Question) -> None:
        self.question = question
        self._validation: dict[str, float] = {}
        self._test: dict[str, float] = {}
        self._is_current = False
        self._expected = question.design.count_runs()
        self.update()

    def update(self) -> Plan:
        """Return the plan that follows from the results so far."""
        if not self._is_current:
            self.plan = make_plan(self.question.design, self._validation, self._test)
            self._done = sum(str(run) in self._validation for run in self.plan.runs)
            self._is_current = True
        return self.plan

    def load(self, read: Callable[[Run], RunResult | None]) -> list[RunResult]:
        """Read the existing results of the runs that follow from one another; return them in the order of the plan."""
        results: dict[str, RunResult] = {}
        tried: set[str] = set()
        while untried := [run for run in self.update().runs if str(run) not in tried]:
            tried |= {*map(str, untried)}
            found = [result for result in map(read, untried) if result is not None]
            self.add(*found)
            results |= {str(result.run): result for result in found}
        return [results[str(run)] for run in self.plan.runs if str(run) in results]

    def add(self, *results: RunResult) -> None:
        """Add results."""
        for result in results:
            name, (validation, test) = str(result.run), measure(self.question, result)
            self._validation[name], self._test[name] = validation, test
            self._is_current = False

    def list_missing(self) -> list[Run]:
        """Return the runs without results, in the order in which they are made."""
        return [run for run in self.update().runs if str(run) not in self._validation]

    def is_done(self) -> bool:
        """Return whether all runs have results, and none will be added."""
        return self.count_done() == len(self.update().runs) and self.plan.is_complete

    def count_done(self) -> int:
        """Return the number of runs with results."""
        self.update()
        return self._done

    def count_runs(self) -> int:
        """Return the number of all runs, as far as it can be known."""
        plan = self.update()
        return len(plan.runs) if plan.is_complete else max(self._expected, len(plan.runs))


def measure(question: Question, result: RunResult) -> tuple[float, float]:
    """Return the validation and the test metric of a run, the higher the better, NaN for none."""
    if result.status == "crashed":
        return math.nan, math.nan
    sign = 1 if question.mode == "max" else -1
    return sign * result.get_validation(question.monitor), sign * result.get_test(question.test_monitor)
