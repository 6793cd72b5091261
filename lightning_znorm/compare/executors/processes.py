"""Processes for the runs: forked from one that has imported everything."""

import contextlib
import multiprocessing
import os
import sys
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import connection, get_context
from typing import Any

from lightning_znorm.compare.executors.base import Event
from lightning_znorm.compare.executors.deadline import Deadline
from lightning_znorm.compare.executors.slots import count_cores
from lightning_znorm.compare.executors.worker import kill_group, pack_task, run_task
from lightning_znorm.compare.files import read_log
from lightning_znorm.compare.identity.modules import find_imports
from lightning_znorm.compare.runs.perform import Task
from lightning_znorm.compare.runs.result import RunResult

_PRELOAD = "LIGHTNING_ZNORM_PRELOAD"
_SECONDS = 1.0  # between two looks at processes whose fork server is gone, so that nobody tells of their end
_SECONDS_TO_END = 30.0  # for a process that has sent its result, before it and all that it has started are killed


@dataclass
class _Worker:
    task: Task
    slot: int
    process: Any
    receiver: Any
    result: RunResult | None = None
    finished: float | None = None
    is_open: bool = True

    def sources(self) -> list[Any]:
        """Return what becomes ready when there is news."""
        sentinels = [self.process.sentinel] if self.process.is_alive() else []
        return [*sentinels, self.receiver] if self.is_open else sentinels

    def has_ended(self) -> bool:
        """Say whether the process is gone, whoever else holds its end of the connection, or has nothing left to do."""
        if self.finished is not None and time.monotonic() > self.finished + _SECONDS_TO_END:
            return True
        return not (self.process.is_alive() or _exists(self.process.pid))


class ProcessExecutor:
    """An :class:`~lightning_znorm.compare.executors.base.Executor` that gives each task a process of its own.

    Args:
        slots: Environment variables of each place at which one task at a time can run, see :func:`make_slots`.
        preload: Modules that the runs will need. The user's own are imported by each run, as they may hold what runs
            must not share, such as an open file; what these import from installed packages is imported once.

    """

    def __init__(self, slots: Sequence[Mapping[str, str]], preload: Iterable[str] = ()) -> None:
        self.jobs = len(slots)
        self._slots = slots
        self._threads = max(1, count_cores() // len(slots))
        self._preload = find_imports(preload)
        # a fork takes along what is imported; where that is not to be trusted, each process imports again
        self._context: Any = get_context("forkserver" if sys.platform == "linux" else "spawn")

    def execute(self, tasks: Iterable[Task], deadline: Deadline | None = None) -> Generator[Event, None, None]:
        """Do the tasks; a process that dies without a result, for example by a signal, has crashed."""
        waiting, workers, deadline = iter(tasks), dict[int, _Worker](), deadline or Deadline()
        try:
            while True:
                for slot in range(self.jobs):
                    task = next(waiting, None) if slot not in workers else None
                    if task is not None:
                        workers[slot] = self._start(task, slot)
                        yield Event(workers[slot].task, "started")
                if not workers:
                    return
                for slot, worker in list(workers.items()):
                    has_ended = worker.has_ended()  # first, so that nothing that it has sent is missed
                    yield from self._hear(worker)
                    if has_ended:
                        self._end(worker)
                        yield Event(worker.task, "done", 1.0, result=worker.result or _lost(worker))
                        worker.process.close()
                        del workers[slot]
                if workers:  # to wait for nothing takes forever
                    deadline.check()
                    sources = [source for worker in workers.values() for source in worker.sources()]
                    connection.wait(sources, min(_SECONDS, deadline.seconds_left))
        finally:
            for worker in workers.values():
                self._end(worker)

    def _start(self, task: Task, slot: int) -> _Worker:
        environment = {**os.environ, **self._slots[slot]}
        payload = pack_task(task, environment, self._default_start_method(), self._threads)
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(target=run_task, args=(payload, sender), name=task.run.key)
        with self._server_environment():
            process.start()
        sender.close()
        return _Worker(task, slot, process, receiver)

    @staticmethod
    def _default_start_method() -> str:
        """Return how this process would start others, without deciding it for good by asking."""
        default, *_ = multiprocessing.get_all_start_methods()
        return multiprocessing.get_start_method(allow_none=True) or default

    @staticmethod
    def _end(worker: _Worker) -> None:
        """End a run's process and all that it has started."""
        if worker.result is None:
            worker.process.kill()
        kill_group(worker.process.pid)
        worker.process.join()
        worker.receiver.close()

    def _hear(self, worker: _Worker) -> Iterator[Event]:
        """Take the messages that have come."""
        try:
            while worker.is_open and worker.receiver.poll():
                kind, *content = worker.receiver.recv()
                if kind == "done":
                    (told,) = content
                    worker.result = RunResult.from_json(worker.task.run, told)
                    worker.finished = time.monotonic()
                else:
                    yield Event(worker.task, kind, *content)
        except (EOFError, ConnectionError):
            worker.is_open = False

    @contextlib.contextmanager
    def _server_environment(self) -> Iterator[None]:
        """Surround the start of the server that the processes are forked from."""
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        # without the NVML check, to ask for a GPU starts CUDA, which does not survive a fork
        wanted = {_PRELOAD: ",".join(self._preload), "PYTHONPATH": path, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
        before = {name: os.environ.get(name) for name in wanted}
        os.environ.update(wanted)
        if self._context.get_start_method() == "forkserver":
            self._context.set_forkserver_preload(["lightning_znorm.compare.executors.preload"])
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def _exists(pid: int) -> bool:
    """Say whether a process exists, a child of the fork server or an orphan."""
    with contextlib.suppress(OSError):
        os.waitpid(pid, os.WNOHANG)  # an orphan may have become a child of this process, and a zombie
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):  # the second of a process of somebody else's
        return False
    return True


def _lost(worker: _Worker) -> RunResult:
    code = worker.process.exitcode
    how = f"by signal {-code}" if code is not None and code < 0 else f"with exit status {code}"
    log = read_log(worker.task.folder)
    error = f"The process ended {how}, without a result." + (f" The end of its log:\n{log}" if log else "")
    return RunResult.of_this_process(worker.task.run, status="crashed", error=error)
