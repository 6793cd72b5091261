"""A whole comparison, from the trial to the report."""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from lightning_znorm._lightning import rank_zero_warn
from lightning_znorm.compare.display import Display, format_time
from lightning_znorm.compare.executors.base import Executor
from lightning_znorm.compare.executors.deadline import Deadline, TimeUpError
from lightning_znorm.compare.identity.provenance import find_provenance
from lightning_znorm.compare.question.plan import Run
from lightning_znorm.compare.question.question import Question
from lightning_znorm.compare.report.findings import Findings, make_findings
from lightning_znorm.compare.report.pages import write_report
from lightning_znorm.compare.runs.perform import Task, find_identities
from lightning_znorm.compare.runs.recipes import ConfiguredRecipe, Recipe
from lightning_znorm.compare.runs.result import RunResult
from lightning_znorm.compare.runs.store import Store
from lightning_znorm.compare.trial import estimate_seconds, explain_missing_monitor, try_methods
from lightning_znorm.errors import ComparisonError, listing


@dataclass(frozen=True)
class Outcome:
    """What came out of a comparison.

    Attributes:
        findings: What the existing results say, ``None`` if there are none.
        gap: Why some are missing, a sentence for the user; ``None`` if all are there.
        is_interrupted: Whether that is so because it was interrupted, or its time was up.

    """

    findings: Findings | None
    gap: str | None = None
    is_interrupted: bool = False


class Comparison:
    """Runs that answer a question, in a folder.

    Args:
        question: What is compared.
        recipe: How runs are made.
        store: Where results are kept.
        executor: Does the runs.
        configuration: What is compared, for the folder to be recognized by.
        trainer: Arguments of the Trainer, for the estimate.
        retry: Whether runs that have crashed are done again.
        minutes: After how many minutes to stop; ``None`` for when all is done.
        prepare: Called before the trials, when the folder has been taken possession of if there is to be one.

    """

    def __init__(
        self,
        question: Question,
        recipe: Recipe,
        store: Store,
        executor: Executor,
        configuration: Mapping[str, Any],
        trainer: Mapping[str, Any],
        retry: bool = False,
        minutes: float | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self.question, self.recipe, self.store, self.executor = question, recipe, store, executor
        self.configuration, self.trainer, self.retry = configuration, trainer, retry
        self.deadline = Deadline(minutes)
        self._prepare = prepare
        self._durations: list[float] = []
        self._has_monitor = False

    def missing_runs(self) -> list[Run]:
        """Return the runs that have no result yet."""
        return [run for run in self.question.runs if self._is_missing(run)]

    def preview(self) -> str:
        """Try each method, leave no trace, and return the list of runs with an estimate of the time."""
        self.store.check(self.configuration)
        if self._prepare is not None:
            self._prepare()
        seconds = self._estimate(try_methods(self.question, self.recipe, self.executor, store=None))
        missing = self.missing_runs()
        lines = [f"{'      ' if run in missing else '[done]'} {run}" for run in self.question.runs]
        return "\n".join([*lines, self._summary_of_time(len(missing), seconds)])

    def run(self) -> Outcome:
        """Do what is missing and write the report, also of a part of the runs when it is interrupted."""
        find_provenance()  # now, and not at the end, when the files may have changed
        with self.store.open(self.configuration):
            if self._prepare is not None:
                self._prepare()
            missing = self.missing_runs()
            known = self.store.read_results(self.question.runs)
            self._durations = [result.seconds.all for result in known if result.seconds]
            self._has_monitor = any(self.question.monitor in result.names for result in known)
            is_interrupted = by_user = False
            try:
                with _sigterm_as_interrupt():
                    if missing:
                        is_interrupted = not self._do(missing)
            except TimeUpError:
                is_interrupted = True
            except KeyboardInterrupt:
                is_interrupted = by_user = True
            results, total = self.store.read_results(self.question.runs), len(self.question.runs)
            gap = None
            if len(results) < total:
                gap = self._explain_cut(len(missing), by_user) if is_interrupted else self._explain_loss(len(results))
                print(gap, file=sys.stderr)
            findings = make_findings(self.question, results) if results else None
            if findings is not None:
                write_report(self.question, findings, self.store.folder, self._format_command())
            return Outcome(findings, gap, is_interrupted and gap is not None)

    def _do(self, missing: Sequence[Run]) -> bool:
        """Do the runs, and say whether there was time for all."""
        total = len(self.question.runs)
        print(f"Trying {len(self.question.methods)} methods on a few batches …", file=sys.stderr, flush=True)
        trials = try_methods(self.question, self.recipe, self.executor, self.store, self.deadline)
        self._tell_unstable(*trials)
        seconds = self._estimate(trials)
        print(self._summary_of_time(len(missing), seconds), file=sys.stderr, flush=True)
        for run in missing:
            self.store.clear(run)
        share = len(missing) / total
        display = Display(
            "runs",
            total,
            total - len(missing),
            self.question.monitor,
            self.executor.jobs,
            None if seconds is None else seconds * share,
        )
        started = 0
        guess = 0.0 if seconds is None else seconds / total
        with display, contextlib.closing(self.executor.execute(self._tasks(missing, guess), self.deadline)) as events:
            for event in events:
                self.store.lease.check()
                if event.result is not None:
                    self._take(event.result)
                display.show(event)
                if event.result is not None:
                    self._refuse_missing_monitor(event.result)
                started += event.kind == "started"
        return started == len(missing)

    def _tasks(self, missing: Sequence[Run], guess: float) -> Iterator[Task]:
        """Yield a task per run, as long as there is time for one that takes as long as the longest so far."""
        for run in missing:
            if not self.deadline.allows(max(self._durations, default=guess)):
                return
            yield Task(run, self.recipe, self.store.run_folder(run), identities=find_identities(run))

    def _take(self, result: RunResult) -> None:
        """Keep the result of a run that has not written it itself."""
        if self.store.read_result(result.run) is None:
            self.store.write_result(result)
        self._durations += [result.seconds.all] if result.seconds else []
        self._tell_unstable(result)

    def _tell_unstable(self, *results: RunResult) -> None:
        """Mark the folder if the runs depend on what a new process would not recognize."""
        parts = dict.fromkeys(part for result in results for part in result.unstable)
        if parts and self.store.mark_unstable(parts):
            rank_zero_warn(
                f"The results in `{self.store.folder}` cannot be used again later, by the same call either: they depend"
                f" on objects that look different in every process ({listing(list(parts))})."
            )

    def _refuse_missing_monitor(self, result: RunResult) -> None:
        """Stop at the first run that was trained to its end without logging the monitor."""
        names, monitor = result.names, self.question.monitor
        if result.status == "finished" and monitor not in names and not self._has_monitor:
            raise ComparisonError(explain_missing_monitor(monitor, names))
        self._has_monitor = self._has_monitor or monitor in names

    def _format_command(self) -> Callable[[Run], str] | None:
        if not isinstance(self.recipe, ConfiguredRecipe):
            return None
        question = self.question
        options = {name: getattr(question, name) for name in ("monitor", "mode", "test_monitor")}
        return partial(self.recipe.format_command, options=options | {"jobs": self.executor.jobs})

    def _explain_cut(self, before: int, by_user: bool) -> str:
        total, left = len(self.question.runs), len(self.missing_runs())
        reason = "Interrupted" if by_user else "Time is up"
        hint = ""
        if not by_user and left == before:
            hint = f" None was finished: {self.deadline.minutes:g} minutes are too few."
        return f"\n{reason}: {total - left} of {total} runs are done.{hint} Run the same command again to resume."

    def _explain_loss(self, done: int) -> str:
        return (
            f"Results have disappeared from `{self.store.folder}` while the comparison was at work: {done} of"
            f" {len(self.question.runs)} are left. Run the same command again to repeat the others."
        )

    def _estimate(self, results: Sequence[RunResult]) -> float | None:
        return estimate_seconds(results, self.question, self.trainer)

    def _summary_of_time(self, missing: int, seconds: float | None) -> str:
        total, jobs = len(self.question.runs), self.executor.jobs
        question = self.question
        counts = f"{len(question.methods)} methods x {len(question.settings)} settings x {len(question.seeds)} seeds"
        time = "a time that the trial does not show"
        if seconds is not None:
            time = f"about {format_time(seconds * missing / total / min(jobs, max(missing, 1)))}"
        done = f", {total - missing} of them done" if missing < total else ""
        return f"{total} runs ({counts}){done}; {jobs} side by side, {time} to go."

    def _is_missing(self, run: Run) -> bool:
        result = self.store.read_result(run)
        return result is None or (self.retry and result.status == "crashed")


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Treat SIGTERM, which a cluster's scheduler sends, as Ctrl-C; not possible outside the main thread."""

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
