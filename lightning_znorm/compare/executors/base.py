"""What a comparison asks of whatever does its runs: tasks in, events out."""

from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from lightning_znorm.compare.executors.deadline import Deadline
from lightning_znorm.compare.runs.perform import Task
from lightning_znorm.compare.runs.result import RunResult


@dataclass(frozen=True)
class Event:
    """News of a task.

    Attributes:
        task: Which one.
        kind: What has happened.
        share: The share of the training that is done.
        metrics: The newest metrics.
        result: Of a task that is done.

    """

    task: Task
    kind: Literal["started", "progress", "done"]
    share: float = 0.0
    metrics: Mapping[str, float] | None = None
    result: RunResult | None = None


class Executor(Protocol):
    """Does tasks side by side.

    Attributes:
        jobs: How many at a time.

    """

    jobs: int

    def execute(self, tasks: Iterable[Task], deadline: Deadline | None = None) -> Generator[Event, None, None]:
        """Do the tasks, in order, and tell what happens.

        The result of each run is in ``result.json`` of its folder before it is told, except for one whose process died:
        that is told with the status ``"crashed"``, and is not written.

        Args:
            tasks: What is to be done; asked for the next one when there is a place for it.
            deadline: When to stop.

        Yields:
            Events. When the iterator is closed, whatever still runs is ended.

        Raises:
            TimeUpError: If the deadline comes first; whatever still runs is ended.

        """
