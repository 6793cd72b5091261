"""The progress display of a comparison."""

import time
from collections.abc import Mapping
from importlib.util import find_spec
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from lightning_znorm.compare.executors.base import Event
from lightning_znorm.compare.report.formatting import format_count, format_reason
from lightning_znorm.compare.runs.result import RunResult
from lightning_znorm.compare.runs.schedule import Schedule


class Display:
    """A bar for the comparison and one for each run on a terminal or in a notebook, a line per finished run elsewhere.

    Args:
        schedule: The runs, with the results of those that were done before.
        monitor: Metric that is shown.
        jobs: Number of runs side by side.
        seconds: Estimate for a run.

    """

    def __init__(self, schedule: Schedule, monitor: str, jobs: int, seconds: float | None = None) -> None:
        self.console = Console(stderr=True)
        self._schedule, self._done_before = schedule, schedule.count_done()
        self._monitor, self._seconds, self._jobs = monitor, seconds, jobs
        self._shares: dict[str, float] = {}
        self._bars: dict[str, TaskID] = {}
        self._began = time.monotonic()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}% {task.fields[note]}"),
        )
        # in a notebook, ipywidgets draw the bars
        is_live = self.console.is_terminal or (self.console.is_jupyter and find_spec("ipywidgets") is not None)
        self._progress = Progress(*columns, console=self.console, transient=True, disable=not is_live)

    def __enter__(self) -> "Display":
        self._progress.start()
        self._total_bar = self._progress.add_task("runs", total=self._schedule.count_runs(), note="")
        self._show_total()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, event: Event) -> None:
        """Show an event, with the result of a run that has ended in the schedule."""
        name = event.task.folder.name
        if event.kind == "started":
            self._shares[name] = 0.0
            self._bars[name] = self._progress.add_task(f"  {event.task.run}", total=1.0, note="")
        elif event.kind == "progress":
            self._shares[name] = event.share
            self._progress.update(self._bars[name], completed=event.share, note=self._format_value(event.metrics or {}))
        else:
            self._shares.pop(name)
            self._progress.remove_task(self._bars.pop(name))
            if event.result is not None:
                self.show_result(event.result)
        self._show_total()

    def _show_total(self) -> None:
        done, total, left = self._schedule.count_done(), self._schedule.count_runs(), self.estimate_seconds_left()
        note = f"{done}/{total}" + (f", {format_time(left)} left" if left is not None else "")
        self._progress.update(self._total_bar, completed=done + sum(self._shares.values()), total=total, note=note)

    def estimate_seconds_left(self) -> float | None:
        """Estimate the remaining time from the pace so far, or from the trial before the first run has ended."""
        in_flight, ended = sum(self._shares.values()), self._schedule.count_done() - self._done_before
        left = self._schedule.count_runs() - self._schedule.count_done() - in_flight
        elapsed = time.monotonic() - self._began
        if ended > 0 or in_flight > 0.2 * self._jobs:
            return elapsed / (ended + in_flight) * left
        if self._seconds is None:
            return None
        return max(0.0, self._seconds * left / self._jobs - elapsed)

    def show_result(self, result: RunResult, remark: str = "") -> None:
        """Print a line for a result in the schedule."""
        seconds = result.seconds.all if result.seconds else 0.0
        outcome = self._format_outcome(result) if result.status == "finished" else _format_failure(result)
        left, done, total = self.estimate_seconds_left(), self._schedule.count_done(), self._schedule.count_runs()
        remaining = f"; {format_time(left)} left" if left and done < total else ""
        remark = f", {remark}" if remark else ""
        line = f"[{done}/{total}] {result.run}: {outcome} ({format_time(seconds)}{remark}{remaining})"
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _format_outcome(self, result: RunResult) -> str:
        validations = result.find_validations(self._monitor)
        outcome = self._format_value(validations[-1].metrics) if validations else ""
        outcome = outcome or f"{self._monitor} was not measured"
        if result.stopped_early:
            outcome += f", {format_count(result.steps or 0, 'step')} ({format_reason(result.ended)})"
        return outcome

    def _format_value(self, metrics: Mapping[str, float | None]) -> str:
        value = metrics.get(self._monitor)
        return "" if value is None else f"{self._monitor} {value:.4g}"


def format_time(seconds: float) -> str:
    """Write a duration.

    Example::

        >>> format_time(0.4), format_time(75), format_time(7300)
        ('0.4 s', '1:15 min', '2:01 h')

    """
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, remainder = divmod(round(seconds), 60)
    return f"{minutes}:{remainder:02d} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d} h"


def _format_failure(result: RunResult) -> str:
    line, *_ = (result.error or "no reason given").splitlines()
    return f"{result.status}: {line[:200]}"
