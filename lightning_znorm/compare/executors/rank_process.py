"""A process of a run, seen from the process that starts it."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from lightning_znorm import fork_server
from lightning_znorm.compare.executors.worker import kill_group, run_task
from lightning_znorm.compare.files import read_log

_EXIT_SECONDS = 30.0  # for a process that has sent its result, before it and its children are killed
_NOTICE_SECONDS = 1.0  # until a death is noticed; other ranks may have reported what followed from it

Progress = tuple[float, Mapping[str, float]]


class RankProcess:
    """A process that performs a packed task for its rank; forked from one with all imports, where that is possible.

    Args:
        payload: Result of :func:`.pack_task`.
        rank: The rank.
        name: Name of the run.
        folder: Folder of its log.
        preload: Modules that the process from which runs are forked imports once.

    Attributes:
        result: The result for JSON, once it has been received.
        failed: When it has failed, by the monotonic clock, ``None`` if it has not.

    """

    def __init__(self, payload: bytes, rank: int, name: str, folder: Path, preload: Sequence[str]) -> None:
        self.rank, self.folder = rank, folder
        self.result: dict[str, Any] | None = None
        self.failed: float | None = None
        self._finished: float | None = None
        self._is_open = True
        # elsewhere, forks are unsafe or do not exist
        context: Any = get_context("forkserver" if sys.platform == "linux" else "spawn")
        self._receiver, sender = context.Pipe(duplex=False)
        self._process = context.Process(target=run_task, args=(payload, sender), name=name)
        fork_server.hand_in(preload)
        if context.get_start_method() == "forkserver":
            context.set_forkserver_preload(["lightning_znorm.compare.executors.preload"])
        with fork_server.server_environment({fork_server.PRELOAD: ",".join(preload)}):
            self._process.start()
        sender.close()

    def find_waitables(self) -> list[Any]:
        """Return the objects to wait for, with :func:`multiprocessing.connection.wait`."""
        sentinels = [self._process.sentinel] if self._process.is_alive() else []
        return [*sentinels, self._receiver] if self._is_open else sentinels

    def has_ended(self) -> bool:
        """Return whether the process is gone, or hangs after its result; others may hold its end of the connection."""
        if self._finished is not None and time.monotonic() > self._finished + _EXIT_SECONDS:
            return True
        return not (self._process.is_alive() or _is_running(self._process.pid))

    def note_death(self) -> None:
        """Note the failure of a process that has ended and whose last messages contained no result."""
        if self.result is None and self.failed is None:
            # NCCL aborts a process because another one has failed
            is_reaction = self._process.exitcode == -signal.SIGABRT
            self.failed = time.monotonic() - (0.0 if is_reaction else _NOTICE_SECONDS)

    def receive(self) -> Iterator[Progress]:
        """Yield the progress that the process has reported since the last call, and keep its result."""
        try:
            while self._is_open and self._receiver.poll():
                kind, *content = self._receiver.recv()
                if kind == "done":
                    self.result, sent = content
                    self._finished = time.monotonic()
                    self.failed = sent if self.result["status"] == "crashed" else None
                else:
                    yield content[0], content[1]
        except (EOFError, ConnectionError):
            self._is_open = False

    def kill(self) -> None:
        """Kill the process and its children."""
        if self.result is None:
            self._process.kill()
        kill_group(self._process.pid)

    def release(self) -> None:
        """Wait for the end of the process, and close the connection."""
        self._process.join()
        self._receiver.close()

    def explain_end(self) -> str:
        """Return how a process ended that has sent no result, with the end of its log."""
        code = self._process.exitcode
        status = f"by signal {-code}" if code is not None and code < 0 else f"with exit status {code}"
        log = read_log(self.folder, rank=self.rank)
        return f"The process ended {status}, without a result." + (f" The end of its log:\n{log}" if log else "")

    def close(self) -> None:
        """Release what an ended process has left."""
        self._process.close()


def _is_running(pid: int) -> bool:
    """Return whether a process exists, also as an orphan."""
    with contextlib.suppress(OSError):
        os.waitpid(pid, os.WNOHANG)  # an orphan may have become a zombie of this process
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):  # PermissionError: the process of another user
        return False
    return True
