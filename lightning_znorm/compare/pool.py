"""Processes for the runs: forked from one that has imported everything."""

import contextlib
import os
import sys
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing import connection, get_context
from typing import Any

import torch

from lightning_znorm.compare.worker import Task, describe, pack, read_log, work

_PRELOAD = "LIGHTNING_ZNORM_PRELOAD"


@dataclass(frozen=True)
class Event:
    """News of a task.

    Attributes:
        task: Which one.
        kind: ``"started"``, ``"progress"`` or ``"done"``.
        share: The share of the training that is done.
        metrics: The newest metrics.
        result: Of a task that is done, what :func:`~lightning_znorm.compare.worker.perform` returned.

    """

    task: Task
    kind: str
    share: float = 0.0
    metrics: Mapping[str, float] | None = None
    result: Mapping[str, Any] | None = None


@dataclass
class _Worker:
    task: Task
    slot: int
    process: Any
    receiver: Any
    result: Mapping[str, Any] | None = None
    is_open: bool = True


class Pool:
    """Does tasks side by side, each in a process of its own.

    Args:
        slots: Environment variables of each place at which one task at a time can run, see :func:`make_slots`.
        preload: Modules that the runs will need.

    """

    def __init__(self, slots: Sequence[Mapping[str, str]], preload: Iterable[str] = ()) -> None:
        self.slots = slots
        self.threads = max(1, available_cores() // len(slots))
        self._preload = list(preload)
        # a fork takes along what is imported; where that is not to be trusted, each process imports anew
        self._context: Any = get_context("forkserver" if sys.platform == "linux" else "spawn")

    def do(self, tasks: Iterable[Task]) -> Generator[Event, None, None]:
        """Do the tasks, in order, and tell what happens.

        Yields:
            Events. A process that dies without a result, by a signal say, ends with a result whose status is
            ``"crashed"``. When the iterator is closed, the processes that still run are ended.

        """
        waiting, workers = iter(tasks), dict[int, _Worker]()
        try:
            while True:
                for slot in range(len(self.slots)):
                    task = next(waiting, None) if slot not in workers else None
                    if task is not None:
                        workers[slot] = self._start(task, slot)
                        yield Event(workers[slot].task, "started")
                if not workers:
                    return
                for slot, worker in list(workers.items()):
                    yield from self._hear(worker)
                    if not worker.is_open and not worker.process.is_alive():
                        worker.process.join()
                        yield Event(worker.task, "done", 1.0, result=worker.result or _lost(worker))
                        worker.process.close()
                        del workers[slot]
                if workers:  # to wait for nothing takes forever
                    connection.wait([w.receiver if w.is_open else w.process.sentinel for w in workers.values()])
        finally:
            for worker in workers.values():
                worker.process.kill()
            for worker in workers.values():
                worker.process.join()

    def _start(self, task: Task, slot: int) -> _Worker:
        task = replace(task, threads=self.threads, environment=self.slots[slot])
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(target=work, args=(pack(task), sender), name=task.run.key)
        with self._server_environment():
            process.start()
        sender.close()
        return _Worker(task, slot, process, receiver)

    def _hear(self, worker: _Worker) -> Iterator[Event]:
        """Take the messages that are there."""
        try:
            while worker.is_open and worker.receiver.poll():
                kind, *content = worker.receiver.recv()
                if kind == "done":
                    (worker.result,) = content
                else:
                    yield Event(worker.task, kind, *content)
        except (EOFError, ConnectionError):
            worker.is_open = False
            worker.receiver.close()

    @contextlib.contextmanager
    def _server_environment(self) -> Iterator[None]:
        """Surround the start of the server that the processes are forked from."""
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        # without the NVML check, to ask for a GPU starts CUDA, which does not survive a fork
        wanted = {_PRELOAD: ",".join(self._preload), "PYTHONPATH": path, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
        before = {name: os.environ.get(name) for name in wanted}
        os.environ.update(wanted)
        if self._context.get_start_method() == "forkserver":
            self._context.set_forkserver_preload(["lightning_znorm.compare.preload"])
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def make_slots(jobs: int | None, accelerator: str = "auto") -> list[dict[str, str]]:
    """Spread a number of jobs over the GPUs that are visible.

    Args:
        jobs: Number of runs side by side; by default one per GPU, or one for every two cores where there is none.
        accelerator: The Trainer's; ``"cpu"`` leaves GPUs alone.

    Returns:
        The environment of each job. With more jobs than GPUs, several share one.

    Raises:
        ValueError: If ``jobs`` is less than 1.

    """
    if jobs is not None and (isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1):
        raise ValueError(f"Expected argument `jobs` to be an integer of at least 1, but got {jobs!r}.")
    gpus = [] if accelerator == "cpu" else visible_gpus()
    count = jobs or len(gpus) or max(1, available_cores() // 2)
    return [{"CUDA_VISIBLE_DEVICES": gpus[job % len(gpus)]} if gpus else {} for job in range(count)]


def visible_gpus() -> list[str]:
    """Return how ``CUDA_VISIBLE_DEVICES`` would name each visible GPU, without starting CUDA."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (named or [str(number) for number in range(count)])[:count]


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _lost(worker: _Worker) -> dict[str, Any]:
    code = worker.process.exitcode
    how = f"by signal {-code}" if code is not None and code < 0 else f"with exit status {code}"
    log = read_log(worker.task.folder)
    error = f"The process ended {how}, without a result." + (f" The end of its log:\n{log}" if log else "")
    return {
        **describe(worker.task.run),
        "status": "crashed",
        "error": error,
        "kind": "process",
        "curve": [],
        "test": {},
    }
