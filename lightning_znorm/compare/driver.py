"""A whole comparison, from the trial to the report."""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_znorm.compare.display import Display, show_time
from lightning_znorm.compare.options import Question
from lightning_znorm.compare.plan import Run
from lightning_znorm.compare.pool import Pool
from lightning_znorm.compare.probe import estimate, probe
from lightning_znorm.compare.recipes import Recipe
from lightning_znorm.compare.report import write_report
from lightning_znorm.compare.store import Store
from lightning_znorm.compare.worker import Task


class Comparison:
    """Runs that answer a question, in a folder.

    Args:
        question: What is compared.
        recipe: How runs are made.
        store: Where results are kept.
        pool: Where runs are done.
        configuration: What is compared, for the folder to be recognized by.
        trainer: Arguments of the Trainer, for the estimate.
        retry: Whether runs that have crashed are done again.

    """

    def __init__(
        self,
        question: Question,
        recipe: Recipe,
        store: Store,
        pool: Pool,
        configuration: Mapping[str, Any],
        trainer: Mapping[str, Any],
        retry: bool = False,
    ) -> None:
        self.question, self.recipe, self.store, self.pool = question, recipe, store, pool
        self.configuration, self.trainer, self.retry = configuration, trainer, retry
        self.prepare: Callable[[], None] = lambda: None

    def missing_runs(self) -> list[Run]:
        """Return the runs that have no result yet."""
        return [run for run in self.question.runs if self._is_missing(run)]

    def preview(self) -> str:
        """Try each method, leave no trace, and return the list of runs with an estimate of the time."""
        self.store.check(self.configuration)
        seconds = self._estimate(probe(self.question, self.recipe, self.pool, store=None))
        missing = self.missing_runs()
        lines = [f"{'      ' if run in missing else '[done]'} {run}" for run in self.question.runs]
        return "\n".join([*lines, self._summary_of_time(len(missing), seconds)])

    def run(self) -> bool:
        """Do what is missing and write the report, also of a part of the runs when it is interrupted.

        Returns:
            Whether all runs are done.

        """
        with self.store.opened(self.configuration):
            self.prepare()
            missing = self.missing_runs()
            try:
                with _sigterm_as_interrupt():
                    if missing:
                        self._do(missing)
            except KeyboardInterrupt:
                total = len(self.question.runs)
                done = total - len(self.missing_runs())
                print(f"\nInterrupted: {done} of {total} runs are done. The same goes on from here.", file=sys.stderr)
            if self.store.results(self.question.runs):
                write_report(self.question, self.store, getattr(self.recipe, "show_command", None))
            return len(self.store.results(self.question.runs)) == len(self.question.runs)

    def _do(self, missing: Sequence[Run]) -> None:
        total = len(self.question.runs)
        print(f"Trying {len(self.question.methods)} methods on a few batches …", file=sys.stderr, flush=True)
        seconds = self._estimate(probe(self.question, self.recipe, self.pool, self.store))
        print(self._summary_of_time(len(missing), seconds), file=sys.stderr, flush=True)
        for run in missing:
            self.store.clear(run)
        tasks = [Task(run, self.recipe, self.store.folder_of(run)) for run in missing]
        share = len(missing) / total
        display = Display(
            "runs",
            total,
            total - len(missing),
            self.question.monitor,
            len(self.pool.slots),
            None if seconds is None else seconds * share,
        )
        with display, contextlib.closing(self.pool.do(tasks)) as events:
            for event in events:
                if event.result is not None and event.result.get("kind") == "process":
                    self.store.keep(event.task.run, event.result)
                display.show(event)

    def _estimate(self, results: Sequence[Mapping[str, Any]]) -> float | None:
        return estimate(results, self.question, self.trainer)

    def _summary_of_time(self, missing: int, seconds: float | None) -> str:
        total, jobs = len(self.question.runs), len(self.pool.slots)
        question = self.question
        counts = f"{len(question.methods)} methods x {len(question.settings)} settings x {len(question.seeds)} seeds"
        time = "a time that cannot be told from the trial"
        if seconds is not None:
            time = f"about {show_time(seconds * missing / total / min(jobs, max(missing, 1)))}"
        done = f", {total - missing} of them done" if missing < total else ""
        return f"{total} runs ({counts}){done}; {jobs} side by side, {time} to go."

    def _is_missing(self, run: Run) -> bool:
        result = self.store.result_of(run)
        return result is None or (self.retry and result["status"] == "crashed")


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Treat a polite request to end, by a cluster's scheduler say, as Ctrl-C; not possible outside the main thread."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def report_paths(folder: Path) -> list[Path]:
    """Return the files of a report that are there."""
    names = ("report.html", "summary.md", "runs.csv", "curves.png", "sweep.png", "differences.png")
    return [folder / name for name in names if (folder / name).exists()]
