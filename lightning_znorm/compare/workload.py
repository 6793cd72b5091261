"""The runs that this command does, among all commands at work in a folder."""

from collections.abc import Callable

from lightning_znorm.compare.question.run import Run
from lightning_znorm.compare.runs.result import RunResult
from lightning_znorm.compare.runs.schedule import Schedule
from lightning_znorm.compare.runs.store import Store


class Workload:
    """Claims runs of a schedule for this command, and finds the results of others.

    Args:
        schedule: The runs.
        store: The folder.
        show: Called with each result that another command has made.

    """

    def __init__(self, schedule: Schedule, store: Store, show: Callable[[RunResult], None]) -> None:
        self._schedule, self._store, self._show = schedule, store, show
        self._claimed: set[str] = set()

    def take(self) -> Run | None:
        """Claim a run, ``None`` if there is none before others have ended, or none at all."""
        unavailable = self._store.claims.list_elsewhere() | self._claimed
        while True:
            before = self._schedule.count_done()
            for run in self._schedule.list_missing():
                if run.key not in unavailable and self._claim(run):
                    return run
            if self._schedule.count_done() == before:
                return None

    def release(self, run: Run) -> None:
        """Release a run, which has a result or is left to others."""
        self._claimed.discard(run.key)
        self._store.claims.release(run.key)

    def depends_on_others(self) -> bool:
        """Return whether all runs that are missing are at work elsewhere."""
        return not (self._claimed or self._schedule.is_done())

    def _claim(self, run: Run) -> bool:
        """Claim a run, unless another command has done it, or has just claimed it."""
        if self._find(run) or not self._store.claims.claim(run.key):
            return False
        self._claimed.add(run.key)
        if self._find(run):  # done between the look and the claim
            self.release(run)
            return False
        return True

    def _find(self, run: Run) -> bool:
        result = self._store.read_result(run)
        if result is None:
            return False
        self._schedule.add(result)
        self._show(result)
        return True
