"""The processes of one run, one per rank, seen from the process that starts them."""

import multiprocessing
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from lightning_znorm.compare.executors.rank_process import Progress, RankProcess
from lightning_znorm.compare.executors.worker import pack_task
from lightning_znorm.compare.runs.devices import make_rank_environment

_GRACE_SECONDS = 10.0  # after a rank has failed, for the errors of the others


class RunProcess:
    """The processes that perform a task together: a single one, or one per rank of a strategy.

    When a rank fails, the others are killed after a short time, as they may wait for it for ever.

    Args:
        pickled_task: The task.
        folder: Folder of the run.
        environment: Environment variables.
        threads: Number of threads of each process.
        processes: Number of ranks, ``None`` for a single process without a strategy.
        name: Name of the run.
        preload: Modules that the process from which runs are forked imports once.

    """

    def __init__(
        self,
        pickled_task: bytes,
        folder: Path,
        environment: Mapping[str, str],
        threads: int,
        processes: int | None,
        name: str,
        preload: Sequence[str],
    ) -> None:
        self._store = None if processes is None else _serve_store()
        port = self._store.port if self._store else None
        self._ranks: list[RankProcess] = []
        try:
            for rank in range(processes or 1):
                variables = {**environment, **make_rank_environment(rank, processes, port, environment)}
                payload = pack_task(pickled_task, folder, variables, _get_start_method(), threads, rank)
                self._ranks.append(RankProcess(payload, rank, name, folder, preload))
        except BaseException:
            self.end()
            raise

    def find_waitables(self) -> list[Any]:
        """Return the objects to wait for, with :func:`multiprocessing.connection.wait`."""
        return [waitable for rank in self._ranks for waitable in rank.find_waitables()]

    def has_ended(self) -> bool:
        """Return whether all processes are gone, or there is nothing more to wait for."""
        ended = [rank for rank in self._ranks if rank.has_ended()]
        if len(ended) == len(self._ranks) or (self._has_succeeded() and self._ranks[0] in ended):
            return True
        failures = [rank.failed for rank in self._ranks if rank.failed is not None]
        return bool(failures) and time.monotonic() > min(failures) + _GRACE_SECONDS

    def receive(self) -> Iterator[Progress]:
        """Yield the progress that rank 0 has reported since the last call, and keep results."""
        ended = [rank for rank in self._ranks if rank.has_ended()]  # before their last messages are received
        for rank in self._ranks:
            yield from rank.receive()
        for rank in ended:
            rank.note_death()

    def end(self) -> None:
        """End the processes and their children."""
        for rank in self._ranks:  # all of them, before one can crash because another is gone
            rank.kill()
        for rank in self._ranks:
            rank.release()
        self._store = None

    @property
    def result(self) -> dict[str, Any] | None:
        """The result for JSON, once it has been received: that of rank 0, or of the rank that failed first."""
        rank = self._find_deciding()
        if rank.rank == 0 or rank.result is None:
            return rank.result
        return {**rank.result, "error": _name_rank(rank, rank.result["error"])}

    def explain_end(self) -> str:
        """Return how the process of a run without a result ended, with the end of its log."""
        rank = self._find_deciding()
        return _name_rank(rank, rank.explain_end())

    def close(self) -> None:
        """Release what ended processes have left."""
        for rank in self._ranks:
            rank.close()

    def _has_succeeded(self) -> bool:
        """Return whether rank 0 has a result, for which it waits until all ranks have theirs."""
        return self._ranks[0].result is not None and self._ranks[0].failed is None

    def _find_deciding(self) -> RankProcess:
        """Return the rank whose result is that of the run."""
        first = self._ranks[0]
        failed = sorted((rank.failed, rank.rank) for rank in self._ranks if rank.failed is not None)
        if self._has_succeeded() or not failed:
            return first
        earliest = self._ranks[failed[0][1]]
        errors = [rank.result["error"] for rank in (first, earliest) if rank.result is not None]
        return first if len(errors) == 2 and errors[0] == errors[1] else earliest


def _name_rank(rank: RankProcess, message: str) -> str:
    return f"Rank {rank.rank}: {message}" if rank.rank else message


def _serve_store() -> TCPStore:
    """Return a store by which the ranks of a run find each other, on a port that was free."""
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def _get_start_method() -> str:
    """Return the start method of this process without fixing it."""
    default, *_ = multiprocessing.get_all_start_methods()
    return multiprocessing.get_start_method(allow_none=True) or default
