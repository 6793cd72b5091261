"""The progress display of a comparison."""

import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from lightning_znorm.compare.executors.base import Event
from lightning_znorm.compare.report.formatting import format_count, format_reason
from lightning_znorm.compare.runs.perform import Task
from lightning_znorm.compare.runs.result import RunResult


class Display:
    """Progress bars for the comparison and each run on a terminal, a line per finished run elsewhere.

    Args:
        title: Name of the bar for all runs.
        total: Number of runs.
        done: Number of runs that were done before.
        monitor: Metric that is shown.
        jobs: Number of runs side by side.
        seconds: Estimate for the remaining runs, one after another.

    """

    def __init__(
        self, title: str, total: int, done: int, monitor: str, jobs: int, seconds: float | None = None
    ) -> None:
        self.console = Console(stderr=True)
        self._title, self._total, self._done, self._done_before = title, total, done, done
        self._monitor, self._seconds, self._jobs = monitor, seconds, jobs
        self._shares: dict[str, float] = {}
        self._bars: dict[str, TaskID] = {}
        self._began = time.monotonic()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}% {task.fields[note]}"),
        )
        self._progress = Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)

    def __enter__(self) -> "Display":
        self._progress.start()
        self._total_bar = self._progress.add_task(self._title, total=self._total, completed=self._done, note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, event: Event) -> None:
        """Show an event."""
        name = event.task.folder.name
        if event.kind == "started":
            self._shares[name] = 0.0
            self._bars[name] = self._progress.add_task(f"  {event.task.run}", total=1.0, note="")
        elif event.kind == "progress":
            self._shares[name] = event.share
            self._progress.update(self._bars[name], completed=event.share, note=self._format_value(event.metrics or {}))
        else:
            self._shares.pop(name)
            self._done += 1
            self._progress.remove_task(self._bars.pop(name))
            if event.result is not None:
                self._print_result(event.task, event.result)
        left = self.estimate_seconds_left()
        note = f"{self._done}/{self._total}" + (f", {format_time(left)} left" if left is not None else "")
        self._progress.update(self._total_bar, completed=self._done + sum(self._shares.values()), note=note)

    def estimate_seconds_left(self) -> float | None:
        """Estimate the remaining time from the pace so far, or from the trial before the first run has ended."""
        done = self._done - self._done_before + sum(self._shares.values())
        left = self._total - self._done - sum(self._shares.values())
        elapsed = time.monotonic() - self._began
        if self._done > self._done_before or done > 0.2 * self._jobs:
            return elapsed / done * left
        if self._seconds is None:
            return None
        return max(0.0, self._seconds / self._jobs - elapsed)

    def _print_result(self, task: Task, result: RunResult) -> None:
        seconds = result.seconds.all if result.seconds else 0.0
        outcome = self._format_outcome(result) if result.status == "finished" else _format_failure(result)
        left = self.estimate_seconds_left()
        remaining = f"; {format_time(left)} left" if left and self._done < self._total else ""
        line = f"[{self._done}/{self._total}] {task.run}: {outcome} ({format_time(seconds)}{remaining})"
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
