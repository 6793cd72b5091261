"""Runs in processes that are forked from one with all imports."""

import contextlib
import multiprocessing
import os
import sys
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import connection, get_context
from typing import Any

from lightning_znorm import fork_server
from lightning_znorm.compare.executors.base import Event
from lightning_znorm.compare.executors.deadline import Deadline
from lightning_znorm.compare.executors.slots import count_cores
from lightning_znorm.compare.executors.worker import kill_group, pack_task, run_task
from lightning_znorm.compare.files import read_log
from lightning_znorm.compare.identity.modules import find_imports
from lightning_znorm.compare.runs.perform import Task
from lightning_znorm.compare.runs.result import RunResult

_POLL_SECONDS = 1.0  # between two checks of processes whose fork server is gone, as nothing signals their end
_EXIT_SECONDS = 30.0  # for a process that has sent its result, before it and its children are killed


@dataclass
class _Worker:
    task: Task
    process: Any
    receiver: Any
    result: RunResult | None = None
    finished: float | None = None
    is_open: bool = True

    def find_waitables(self) -> list[Any]:
        """Return the objects to wait for."""
        sentinels = [self.process.sentinel] if self.process.is_alive() else []
        return [*sentinels, self.receiver] if self.is_open else sentinels

    def has_ended(self) -> bool:
        """Return whether the process is gone, or hangs after its result; others may hold its end of the connection."""
        if self.finished is not None and time.monotonic() > self.finished + _EXIT_SECONDS:
            return True
        return not (self.process.is_alive() or _is_running(self.process.pid))


class ProcessExecutor:
    """An :class:`~lightning_znorm.compare.executors.base.Executor` with a separate process for each task.

    Args:
        slots: Environment variables of each slot for one task at a time, see :func:`make_slots`.
        preload: Modules of the runs. Installed ones, and those that the user's modules import, are imported once. The
            user's modules are imported by each run, as they may contain state such as open files.

    """

    def __init__(self, slots: Sequence[Mapping[str, str]], preload: Iterable[str] = ()) -> None:
        self.jobs = len(slots)
        self._slots = slots
        self.threads = max(1, count_cores() // len(slots))
        self._preload = find_imports(preload)
        # elsewhere, forks are unsafe or do not exist
        self._context: Any = get_context("forkserver" if sys.platform == "linux" else "spawn")

    def execute(self, tasks: Iterable[Task | None], deadline: Deadline | None = None) -> Generator[Event, None, None]:
        """Perform the tasks; a process that dies without a result has crashed."""
        waiting, workers, deadline = iter(tasks), dict[int, _Worker](), deadline or Deadline()
        try:
            while True:
                for slot in range(self.jobs):
                    task = next(waiting, None) if slot not in workers else None
                    if task is not None:
                        workers[slot] = self._start(task, slot)
                        yield Event(task, "started")
                if not workers:
                    return
                running = len(workers)
                for slot, worker in list(workers.items()):
                    has_ended = worker.has_ended()  # before the last messages are received
                    yield from self._receive(worker)
                    if has_ended:
                        self._end(worker)
                        yield Event(worker.task, "done", 1.0, result=worker.result or _make_crash_result(worker))
                        worker.process.close()
                        del workers[slot]
                if len(workers) == running:  # else a slot is free
                    deadline.check()
                    waitables = [waitable for worker in workers.values() for waitable in worker.find_waitables()]
                    connection.wait(waitables, min(_POLL_SECONDS, deadline.seconds_left))
        finally:
            for worker in workers.values():
                self._end(worker)

    def _start(self, task: Task, slot: int) -> _Worker:
        environment = {**os.environ, **self._slots[slot]}
        payload = pack_task(task, environment, self._get_start_method(), task.threads or self.threads)
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(target=run_task, args=(payload, sender), name=task.run.key)
        fork_server.hand_in(self._preload)
        if self._context.get_start_method() == "forkserver":
            self._context.set_forkserver_preload(["lightning_znorm.compare.executors.preload"])
        with fork_server.server_environment({fork_server.PRELOAD: ",".join(self._preload)}):
            process.start()
        sender.close()
        return _Worker(task, process, receiver)

    @staticmethod
    def _get_start_method() -> str:
        """Return the start method of this process without fixing it."""
        default, *_ = multiprocessing.get_all_start_methods()
        return multiprocessing.get_start_method(allow_none=True) or default

    @staticmethod
    def _end(worker: _Worker) -> None:
        """End a run's process and its children."""
        if worker.result is None:
            worker.process.kill()
        kill_group(worker.process.pid)
        worker.process.join()
        worker.receiver.close()

    def _receive(self, worker: _Worker) -> Iterator[Event]:
        """Receive the messages of a process."""
        try:
            while worker.is_open and worker.receiver.poll():
                kind, *content = worker.receiver.recv()
                if kind == "done":
                    worker.result = RunResult.from_json(worker.task.run, *content)
                    worker.finished = time.monotonic()
                else:
                    yield Event(worker.task, kind, *content)
        except (EOFError, ConnectionError):
            worker.is_open = False


def _is_running(pid: int) -> bool:
    """Return whether a process exists, also as an orphan."""
    with contextlib.suppress(OSError):
        os.waitpid(pid, os.WNOHANG)  # an orphan may have become a zombie of this process
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):  # PermissionError: the process of another user
        return False
    return True


def _make_crash_result(worker: _Worker) -> RunResult:
    code = worker.process.exitcode
    status = f"by signal {-code}" if code is not None and code < 0 else f"with exit status {code}"
    log = read_log(worker.task.folder)
    error = f"The process ended {status}, without a result." + (f" The end of its log:\n{log}" if log else "")
    return RunResult.of_this_process(worker.task.run, status="crashed", error=error)
