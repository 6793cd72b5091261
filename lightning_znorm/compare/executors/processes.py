"""Runs side by side in processes of this machine."""

import os
from collections.abc import Generator, Iterable, Mapping, Sequence
from multiprocessing import connection

from lightning_znorm.compare.executors.base import Event
from lightning_znorm.compare.executors.deadline import Deadline
from lightning_znorm.compare.executors.run_process import RunProcess
from lightning_znorm.compare.executors.slots import count_cores
from lightning_znorm.compare.executors.worker import pickle_task
from lightning_znorm.compare.identity.modules import find_imports
from lightning_znorm.compare.runs.perform import Task
from lightning_znorm.compare.runs.result import RunResult

_POLL_SECONDS = 1.0  # between two checks of processes whose fork server is gone, as nothing signals their end


class ProcessExecutor:
    """An :class:`~lightning_znorm.compare.executors.base.Executor` with separate processes for each task.

    Args:
        slots: Environment variables of each slot for one task at a time, see :func:`make_slots`.
        preload: Modules of the runs. Installed ones, and those that the user's modules import, are imported once. The
            user's modules are imported by each run, as they may contain state such as open files.
        processes: Number of processes of each task, see :func:`.count_processes`.
        threads: Number of threads of each process, ``None`` for the cores divided by the processes side by side.

    """

    def __init__(
        self,
        slots: Sequence[Mapping[str, str]],
        preload: Iterable[str] = (),
        processes: int | None = None,
        threads: int | None = None,
    ) -> None:
        self.jobs = len(slots)
        self._slots, self._processes = slots, processes
        self.threads = threads or max(1, count_cores() // (len(slots) * (processes or 1)))
        self._preload = find_imports(preload)

    def execute(self, tasks: Iterable[Task | None], deadline: Deadline | None = None) -> Generator[Event, None, None]:
        """Perform the tasks; a process that dies without a result has crashed."""
        waiting, deadline = iter(tasks), deadline or Deadline()
        running: dict[int, tuple[Task, RunProcess]] = {}
        try:
            while True:
                for slot in range(self.jobs):
                    task = next(waiting, None) if slot not in running else None
                    if task is not None:
                        running[slot] = task, self._start(task, slot)
                        yield Event(task, "started")
                if not running:
                    return
                before = len(running)
                for slot, (task, process) in list(running.items()):
                    has_ended = process.has_ended()  # before the last messages are received
                    for share, metrics in process.receive():
                        yield Event(task, "progress", share, metrics)
                    if has_ended:
                        process.end()
                        yield Event(task, "done", 1.0, result=_read_result(task, process))
                        process.close()
                        del running[slot]
                if len(running) == before:  # else a slot is free
                    deadline.check()
                    waitables = [waitable for _, process in running.values() for waitable in process.find_waitables()]
                    connection.wait(waitables, min(_POLL_SECONDS, deadline.seconds_left))
        finally:
            for _, process in running.values():
                process.end()

    def _start(self, task: Task, slot: int) -> RunProcess:
        environment = {**os.environ, **self._slots[slot]}
        threads = task.threads or self.threads
        return RunProcess(
            pickle_task(task), task.folder, environment, threads, self._processes, task.run.key, self._preload
        )


def _read_result(task: Task, process: RunProcess) -> RunResult:
    result = RunResult.from_json(task.run, process.result) if process.result is not None else None
    return result or RunResult.of_this_process(task.run, status="crashed", error=process.explain_end())
