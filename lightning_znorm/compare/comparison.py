"""A comparison, from the trial to the report."""

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_znorm._lightning import rank_zero_warn
from lightning_znorm.compare.display import Display, format_time
from lightning_znorm.compare.executors.base import Executor
from lightning_znorm.compare.executors.deadline import Deadline, TimeUpError
from lightning_znorm.compare.identity.provenance import find_provenance
from lightning_znorm.compare.question.draft import Draft
from lightning_znorm.compare.question.question import Question
from lightning_znorm.compare.question.run import Run
from lightning_znorm.compare.report.findings import Findings, make_findings
from lightning_znorm.compare.report.formatting import format_count
from lightning_znorm.compare.report.pages import write_report
from lightning_znorm.compare.runs.checkpoint import find_checkpoint
from lightning_znorm.compare.runs.perform import Task, find_identities
from lightning_znorm.compare.runs.recipes import Recipe
from lightning_znorm.compare.runs.result import RunResult
from lightning_znorm.compare.runs.schedule import Schedule
from lightning_znorm.compare.runs.store import Store
from lightning_znorm.compare.trial import estimate_seconds, explain_missing_monitor, try_methods
from lightning_znorm.compare.workload import Workload
from lightning_znorm.errors import ComparisonError, join_names

_POLL_SECONDS = 1.0  # between two looks at what other commands do
_TRIAL = "trial"


@dataclass(frozen=True)
class Outcome:
    """Outcome of a comparison.

    Attributes:
        question: The question, ``None`` if it was not known yet.
        findings: Tables and sentences of the existing results, ``None`` if there are none.
        missing_reason: Why results are missing, a sentence for the user; ``None`` if none are.
        is_interrupted: Whether they are missing because of an interruption, or because the time was up.

    """

    question: Question | None
    findings: Findings | None
    missing_reason: str | None = None
    is_interrupted: bool = False


@dataclass
class Comparison:
    """Runs that answer a question, in a folder.

    Args:
        draft: What is compared.
        recipe: How runs are made.
        store: Where results are kept.
        executor: Performs the runs.
        configuration: Identifies the comparison that a folder belongs to.
        retry: Whether to repeat runs that crashed.
        threads: Number of threads of each run that is asked for, ``None`` for the executor's choice.
        minutes: Time after which to stop, ``None`` for no limit.
        prepare: Called before the trials, and with the folder acquired if one is used.
        about: What the report says of the comparison, see :func:`write_report`.

    """

    draft: Draft
    recipe: Recipe
    store: Store
    executor: Executor
    configuration: Mapping[str, Any]
    retry: bool = False
    threads: int | None = None
    minutes: float | None = None
    prepare: Callable[[], None] = lambda: None
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.deadline = Deadline(self.minutes)
        self._durations: list[float] = []
        self._has_monitor = False

    def preview(self) -> str:
        """Try each method without leaving files behind, and list the runs with an estimate of the time."""
        self.store.check(self.configuration)
        self.prepare()
        self._recall()
        question, trials = try_methods(self.draft, self.recipe, self.executor, store=None)
        schedule = Schedule(question)
        names = {str(result.run) for result in schedule.load(self._read_kept)}
        lines = [f"{'[done]' if str(run) in names else '      '} {run}" for run in schedule.update().runs]
        if not schedule.plan.is_complete:
            lines.append("       … and what follows from these")
        return "\n".join([*lines, self._format_plan(schedule, self._estimate(trials))])

    def run(self) -> Outcome:
        """Do the missing runs and write the report, also after an interruption."""
        find_provenance()  # cached, as files may change later
        with self.store.open(self.configuration, self.retry):
            self.prepare()
            self._recall()
            schedule = self._make_schedule(self.draft.question) if self.draft.is_certain else None
            results = schedule.load(self.store.read_result) if schedule else []
            is_interrupted = is_by_user = False
            try:
                with _sigterm_as_interrupt():
                    if schedule is None or not schedule.is_done():
                        question = self._try()
                        if schedule is None:
                            schedule = self._make_schedule(question)
                            results = schedule.load(self.store.read_result)
                        is_interrupted = not self._execute(schedule, results)
            except TimeUpError:
                is_interrupted = True
            except KeyboardInterrupt:
                is_interrupted = is_by_user = True
            return self._conclude(schedule, len(results), is_interrupted, is_by_user)

    def _recall(self) -> None:
        """Take the key of the learning rate from the folder, if runs of it are there."""
        known = self.store.read_question()
        if known.get("is_verified") and (known["keys"] or self.draft.is_optional):
            self.draft = self.draft.recall(known["keys"])

    def _read_kept(self, run: Run) -> RunResult | None:
        """Return the result of a run unless it would be repeated."""
        result = self.store.read_result(run)
        return None if result is not None and self.retry and result.status == "crashed" else result

    def _try(self) -> Question:
        """Try the methods, unless another command does, and return the question."""
        methods = format_count(len(self.draft.methods), "method")
        while not self.store.claims.claim(_TRIAL):
            self._wait()
        try:
            print(f"Trying {methods} on a few batches …", file=sys.stderr, flush=True)
            question, trials = try_methods(self.draft, self.recipe, self.executor, self.store, self.deadline)
        finally:
            self.store.claims.release(_TRIAL)
        self._warn_unstable(*trials)
        self._seconds = self._estimate(trials)
        return question

    def _make_schedule(self, question: Question) -> Schedule:
        """Return the schedule of a question, and note the question in the folder."""
        is_verified = self.draft.is_verified or bool(self.draft.list_probes())
        self.store.write_question(question.to_json() | {"is_verified": is_verified}, self._describe())
        return Schedule(question)

    def _execute(self, schedule: Schedule, results: Sequence[RunResult]) -> bool:
        """Do the runs, and return whether there was time for all."""
        self._durations = [result.seconds.all for result in results if result.seconds]
        monitor = schedule.question.monitor
        self._has_monitor = any(monitor in result.names for result in results)
        print(self._format_plan(schedule, self._seconds), file=sys.stderr, flush=True)
        display = Display(schedule, monitor, self.executor.jobs, self._seconds)

        def show(result: RunResult) -> None:
            self._durations += [result.seconds.all] if result.seconds else []
            display.show_result(result, "by another command")
            self._check_monitor(result, monitor)

        workload = Workload(schedule, self.store, show)
        tasks = self._make_tasks(workload)
        with display, contextlib.closing(self.executor.execute(tasks, self.deadline)) as events:
            for event in events:
                self.store.claims.check()
                if event.result is not None:
                    self._keep_result(event.result)
                    schedule.add(event.result)
                    workload.release(event.task.run)
                display.show(event)
                if event.result is not None:
                    self._check_monitor(event.result, monitor)
        return schedule.is_done()

    def _make_tasks(self, workload: Workload) -> Iterator[Task | None]:
        """Yield a task per run, as long as there is time for one that takes as long as the longest so far."""
        threads = self.store.fix_threads(self.executor.threads)
        if self.threads not in (None, threads):
            raise ComparisonError(
                f"Argument `threads` is {self.threads}, but runs in `{self.store.folder}` have {threads}, and the last"
                " digits of a sum depend on it. Leave it out, or choose another folder."
            )
        while True:
            run = workload.take()
            if run is None:
                if workload.depends_on_others():
                    self._wait()
                else:
                    yield None
                continue
            if not self.deadline.allows(max(self._durations, default=self._seconds or 0.0)):
                workload.release(run)
                return
            self.store.clear(run)
            folder = self.store.get_run_folder(run)
            identities = find_identities(run)
            yield Task(
                run, self.recipe, folder, checkpoint=find_checkpoint(folder), identities=identities, threads=threads
            )

    def _wait(self) -> None:
        """Wait for another command, and take over what it has claimed if it dies."""
        self.deadline.check()
        time.sleep(min(_POLL_SECONDS, self.deadline.seconds_left))
        self.store.claims.check()

    def _conclude(self, schedule: Schedule | None, before: int, is_interrupted: bool, is_by_user: bool) -> Outcome:
        """Write the report of the existing results, and say why others are missing."""
        if schedule is None:
            cause = "Interrupted" if is_by_user else "Time is up"
            print(f"\n{cause} in the trial. Run the same command again.", file=sys.stderr)
            return Outcome(None, None, cause, is_interrupted=True)
        done, total = schedule.count_done(), schedule.count_runs()
        question = schedule.question
        stored = Schedule(question)
        results = stored.load(self.store.read_result)
        reason = None
        if is_interrupted and not schedule.is_done():
            hint = ""
            if not is_by_user and done == before:
                hint = f" None was finished: {self.deadline.minutes:g} minutes are too few."
            cause = "Interrupted" if is_by_user else "Time is up"
            reason = f"\n{cause}: {done} of {total} runs are done.{hint} Run the same command again to resume."
        elif not stored.is_done():
            reason = (
                f"Results have disappeared from `{self.store.folder}` during the comparison: {len(results)} of {total}"
                " are left. Run the same command again to repeat the others."
            )
        if reason is not None:
            print(reason, file=sys.stderr)
        findings = make_findings(question, results, self.store.read_planned()) if results else None
        if findings is not None:
            with self.store.claims.lock():
                write_report(question, findings, self.store.folder, self._describe())
        return Outcome(question, findings, reason, is_interrupted and reason is not None)

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

    def _check_monitor(self, result: RunResult, monitor: str) -> None:
        """Stop at the first run that finished without logging the monitor."""
        names = result.names
        if result.status == "finished" and monitor not in names and not self._has_monitor:
            raise ComparisonError(explain_missing_monitor(monitor, names))
        self._has_monitor = self._has_monitor or monitor in names

    def _describe(self) -> dict[str, Any]:
        return {**self.about, "jobs": self.executor.jobs}

    def _estimate(self, trials: Sequence[RunResult]) -> float | None:
        return estimate_seconds(trials, self.recipe.trainer)

    def _format_plan(self, schedule: Schedule, seconds: float | None) -> str:
        total, done, jobs = schedule.count_runs(), schedule.count_done(), self.executor.jobs
        time = "time unknown"
        if seconds is not None:
            time = f"about {format_time(seconds * (total - done) / min(jobs, max(total - done, 1)))} to go"
        known = f", {done} of them done" if done else ""
        return f"{describe_stages(schedule.question)}{known}; {jobs} side by side, {time}."


def describe_stages(question: Question) -> str:
    """Describe how many runs are made in each stage."""
    design, methods = question.design, len(question.methods)
    counts = {candidates.count_runs() for candidates in design.candidates.values()}
    select = f"{methods} x up to {max(counts)} to select a setting, " if max(counts) else ""
    least = "at least " if design.width is not None else ""
    confirm = f"{methods} x {least}{design.least_pairs} to {'confirm it' if select else 'compare'}"
    return f"{format_count(design.count_runs(), 'run')} ({select}{confirm})"


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
