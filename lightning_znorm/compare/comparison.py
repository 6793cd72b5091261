"""A comparison, from the trial to the report."""

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
from lightning_znorm.compare.runs.checkpoint import find_checkpoint
from lightning_znorm.compare.runs.perform import Task, find_identities
from lightning_znorm.compare.runs.recipes import ConfiguredRecipe, Recipe
from lightning_znorm.compare.runs.result import RunResult
from lightning_znorm.compare.runs.store import Store
from lightning_znorm.compare.trial import estimate_seconds, explain_missing_monitor, try_methods
from lightning_znorm.errors import ComparisonError, join_names


@dataclass(frozen=True)
class Outcome:
    """Outcome of a comparison.

    Attributes:
        findings: Tables and sentences of the existing results, ``None`` if there are none.
        missing_reason: Why results are missing, a sentence for the user; ``None`` if none are.
        is_interrupted: Whether they are missing because of an interruption, or because the time was up.

    """

    findings: Findings | None
    missing_reason: str | None = None
    is_interrupted: bool = False


@dataclass
class Comparison:
    """Runs that answer a question, in a folder.

    Args:
        question: What is compared.
        recipe: How runs are made.
        store: Where results are kept.
        executor: Performs the runs.
        configuration: Identifies the comparison that a folder belongs to.
        retry: Whether to repeat runs that crashed.
        minutes: Time after which to stop, ``None`` for no limit.
        prepare: Called before the trials, and with the folder acquired if one is used.

    """

    question: Question
    recipe: Recipe
    store: Store
    executor: Executor
    configuration: Mapping[str, Any]
    retry: bool = False
    minutes: float | None = None
    prepare: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.deadline = Deadline(self.minutes)
        self._durations: list[float] = []
        self._has_monitor = False

    def find_missing_runs(self) -> list[Run]:
        """Return the runs that have no result yet, or are to be repeated."""
        results = [(run, self.store.read_result(run)) for run in self.question.runs]
        return [run for run, result in results if result is None or (self.retry and result.status == "crashed")]

    def preview(self) -> str:
        """Try each method without leaving files behind, and list the runs with an estimate of the time."""
        self.store.check(self.configuration)
        self.prepare()
        trials = try_methods(self.question, self.recipe, self.executor, store=None)
        missing = self.find_missing_runs()
        lines = [f"{'      ' if run in missing else '[done]'} {run}" for run in self.question.runs]
        return "\n".join([*lines, self._format_plan(len(missing), self._estimate_seconds(trials))])

    def run(self) -> Outcome:
        """Do the missing runs and write the report, also after an interruption."""
        find_provenance()  # cached, as files may change later
        with self.store.open(self.configuration):
            self.prepare()
            missing = self.find_missing_runs()
            results = self.store.read_results(self.question.runs)
            self._durations = [result.seconds.all for result in results if result.seconds]
            self._has_monitor = any(self.question.monitor in result.names for result in results)
            is_interrupted = is_by_user = False
            try:
                with _sigterm_as_interrupt():
                    is_interrupted = bool(missing) and not self._execute(missing)
            except TimeUpError:
                is_interrupted = True
            except KeyboardInterrupt:
                is_interrupted = is_by_user = True
            results, total = self.store.read_results(self.question.runs), len(self.question.runs)
            reason = None
            if len(results) < total:
                reason = self._explain_loss(len(results))
                if is_interrupted:
                    reason = self._explain_interruption(len(missing), is_by_user)
                print(reason, file=sys.stderr)
            findings = make_findings(self.question, results) if results else None
            if findings is not None:
                write_report(self.question, findings, self.store.folder, self._make_command_format())
            return Outcome(findings, reason, is_interrupted and reason is not None)

    def _execute(self, missing: Sequence[Run]) -> bool:
        """Do the runs, and return whether there was time for all."""
        total = len(self.question.runs)
        print(f"Trying {len(self.question.methods)} methods on a few batches …", file=sys.stderr, flush=True)
        trials = try_methods(self.question, self.recipe, self.executor, self.store, self.deadline)
        self._warn_unstable(*trials)
        seconds = self._estimate_seconds(trials)
        print(self._format_plan(len(missing), seconds), file=sys.stderr, flush=True)
        remaining = None if seconds is None else seconds * len(missing) / total
        monitor, jobs = self.question.monitor, self.executor.jobs
        display = Display("runs", total, total - len(missing), monitor, jobs, remaining)
        tasks = self._make_tasks(missing, 0.0 if seconds is None else seconds / total)
        started = 0
        with display, contextlib.closing(self.executor.execute(tasks, self.deadline)) as events:
            for event in events:
                self.store.lease.check()
                if event.result is not None:
                    self._keep_result(event.result)
                display.show(event)
                if event.result is not None:
                    self._check_monitor(event.result)
                started += event.kind == "started"
        return started == len(missing)

    def _make_tasks(self, missing: Sequence[Run], estimate: float) -> Iterator[Task]:
        """Yield a task per run, as long as there is time for one that takes as long as the longest so far."""
        for run in missing:
            if not self.deadline.allows(max(self._durations, default=estimate)):
                return
            self.store.clear(run)
            folder = self.store.get_run_folder(run)
            identities = find_identities(run)
            yield Task(run, self.recipe, folder, checkpoint=find_checkpoint(folder), identities=identities)

    def _keep_result(self, result: RunResult) -> None:
        """Write the result of a run whose process could not."""
        if self.store.read_result(result.run) is None:
            self.store.write_result(result)
        self._durations += [result.seconds.all] if result.seconds else []
        self._warn_unstable(result)

    def _warn_unstable(self, *results: RunResult) -> None:
        """Mark the folder if the runs depend on objects that no other process can recognize."""
        parts = dict.fromkeys(part for result in results for part in result.unstable)
        if parts and self.store.mark_unstable(parts):
            rank_zero_warn(
                f"The results in `{self.store.folder}` cannot be used again later, not even by the same call: they"
                f" depend on objects that look different in every process ({join_names(list(parts))})."
            )

    def _check_monitor(self, result: RunResult) -> None:
        """Stop at the first run that finished without logging the monitor."""
        names, monitor = result.names, self.question.monitor
        if result.status == "finished" and monitor not in names and not self._has_monitor:
            raise ComparisonError(explain_missing_monitor(monitor, names))
        self._has_monitor = self._has_monitor or monitor in names

    def _make_command_format(self) -> Callable[[Run], str] | None:
        if not isinstance(self.recipe, ConfiguredRecipe):
            return None
        question = self.question
        options = {name: getattr(question, name) for name in ("monitor", "mode", "test_monitor")}
        return partial(self.recipe.format_command, options=options | {"jobs": self.executor.jobs})

    def _explain_interruption(self, missing: int, is_by_user: bool) -> str:
        total, left = len(self.question.runs), len(self.find_missing_runs())
        reason = "Interrupted" if is_by_user else "Time is up"
        hint = ""
        if not is_by_user and left == missing:
            hint = f" None was finished: {self.deadline.minutes:g} minutes are too few."
        return f"\n{reason}: {total - left} of {total} runs are done.{hint} Run the same command again to resume."

    def _explain_loss(self, done: int) -> str:
        return (
            f"Results have disappeared from `{self.store.folder}` during the comparison: {done} of"
            f" {len(self.question.runs)} are left. Run the same command again to repeat the others."
        )

    def _estimate_seconds(self, trials: Sequence[RunResult]) -> float | None:
        return estimate_seconds(trials, self.question, self.recipe.trainer)

    def _format_plan(self, missing: int, seconds: float | None) -> str:
        question, total, jobs = self.question, len(self.question.runs), self.executor.jobs
        counts = f"{len(question.methods)} methods x {len(question.settings)} settings x {len(question.seeds)} seeds"
        time = "time unknown"
        if seconds is not None:
            time = f"about {format_time(seconds * missing / total / min(jobs, max(missing, 1)))} to go"
        done = f", {total - missing} of them done" if missing < total else ""
        return f"{total} runs ({counts}){done}; {jobs} side by side, {time}."


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Treat SIGTERM, which schedulers send, as Ctrl-C; only the main thread can."""

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
