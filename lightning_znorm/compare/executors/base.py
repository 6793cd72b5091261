"""The interface of executors: tasks in, events out."""

from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from lightning_znorm.compare.executors.deadline import Deadline
from lightning_znorm.compare.runs.perform import Task
from lightning_znorm.compare.runs.result import RunResult


@dataclass(frozen=True)
class Event:
    """An event of a task.

    Attributes:
        task: The task.
        kind: Kind of the event.
        share: Share of the training that is done.
        metrics: The newest metrics.
        result: Result of a task that is done.

    """

    task: Task
    kind: Literal["started", "progress", "done"]
    share: float = 0.0
    metrics: Mapping[str, float] | None = None
    result: RunResult | None = None


class Executor(Protocol):
    """Performs tasks side by side."""

    @property
    def jobs(self) -> int:
        """Number of tasks at a time."""

    @property
    def threads(self) -> int:
        """Number of threads of each."""

    def execute(self, tasks: Iterable[Task | None], deadline: Deadline | None = None) -> Generator[Event, None, None]:
        """Perform the tasks in order; when the generator ends or is closed, all processes are ended.

        The result of a run is written to ``result.json`` in its folder before its event, unless its process died, or
        one of several processes failed: then the event has a result with the status ``"crashed"``, and there is no
        file.

        Args:
            tasks: Tasks, each of which is taken when there is a slot for it; ``None`` where there is none before others
                have ended.
            deadline: When to stop.

        Yields:
            Events of the tasks.

        Raises:
            TimeUpError: If the deadline comes first.

        """
