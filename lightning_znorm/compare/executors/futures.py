"""Runs on an engine: any ``concurrent.futures.Executor``, such as that of a Dask cluster."""

import json
import os
import pickle
import queue
import secrets
import socket
import sys
import threading
import uuid
from collections.abc import Generator, Iterable
from concurrent import futures
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

from lightning_znorm.compare.executors.base import Event
from lightning_znorm.compare.executors.deadline import Deadline
from lightning_znorm.compare.executors.remote import Request, describe_installation, perform_remotely
from lightning_znorm.compare.executors.worker import pickle_task
from lightning_znorm.compare.files import write_atomically
from lightning_znorm.compare.identity.modules import find_imports, is_installed_file
from lightning_znorm.compare.runs.perform import Task
from lightning_znorm.compare.runs.result import RunResult
from lightning_znorm.errors import ArgumentTypeError, ComparisonError, describe

_POLL_SECONDS = 1.0
_ATTEMPTS = 2  # of a run whose worker is lost


@dataclass
class _Job:
    task: Task
    future: futures.Future[bytes]
    marker: Path
    attempts: int = 1
    has_started: bool = False


class FuturesExecutor:
    """An :class:`~lightning_znorm.compare.executors.base.Executor` that sends each task to an engine.

    Args:
        engine: Any executor; its workers need this package. It is not shut down.
        jobs: Largest number of runs that are submitted at a time; ``None`` for all that can be made, so that the engine
            decides.
        threads: Number of threads of each process of a run.
        preload: Modules of the runs, see :class:`.ProcessExecutor`.
        processes: Number of processes of each run, see :func:`.count_processes`.

    Raises:
        ArgumentTypeError: If the engine is not one.

    """

    def __init__(
        self,
        engine: Any,
        jobs: int | None = None,
        threads: int = 1,
        preload: Iterable[str] = (),
        processes: int | None = None,
    ) -> None:
        if not isinstance(engine, futures.Executor):
            raise ArgumentTypeError(
                f"Expected argument `executor` to be a `concurrent.futures.Executor`, but got {describe(engine)}. Of a"
                " Dask client, pass `client.get_executor(pure=False, retries=0)`."
            )
        self.threads = threads
        self._engine, self._limit = engine, jobs
        self._of_all_runs: dict[str, Any] = {
            "preload": find_imports(preload),
            "processes": processes,
            "paths": [path for path in map(os.path.abspath, sys.path) if not is_installed_file(Path(path))],
            "working_directory": os.getcwd(),
            "versions": describe_installation(),
        }
        self._running = 0

    @property
    def jobs(self) -> int:
        """Number of runs at a time, as far as that is known."""
        return self._limit or getattr(self._engine, "max_workers", None) or max(1, self._running)

    def execute(self, tasks: Iterable[Task | None], deadline: Deadline | None = None) -> Generator[Event, None, None]:
        """Perform the tasks; a run whose worker is lost is started once more."""
        waiting, deadline = iter(tasks), deadline or Deadline()
        messages: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        jobs: dict[str, _Job] = {}
        with _Switchboard(messages) as switchboard:
            try:
                while True:
                    while self._limit is None or len(jobs) < self._limit:
                        task = next(waiting, None)
                        if task is None:
                            break
                        token = uuid.uuid4().hex
                        jobs[token] = self._submit(task, token, switchboard)
                    if not jobs:
                        return
                    deadline.check()
                    with suppress(queue.Empty):
                        token, kind, *content = messages.get(timeout=min(_POLL_SECONDS, deadline.seconds_left))
                        if token in jobs:
                            yield from self._handle(jobs, token, kind, content, switchboard)
            finally:
                for job in jobs.values():
                    job.future.cancel()
                    job.marker.unlink(missing_ok=True)
                self._running = 0

    def _handle(
        self, jobs: dict[str, _Job], token: str, kind: str, content: list[Any], switchboard: "_Switchboard"
    ) -> Generator[Event, None, None]:
        job = jobs[token]
        if not job.has_started:
            job.has_started = True
            self._running += 1
            yield Event(job.task, "started")
        if kind == "progress":
            yield Event(job.task, "progress", *content)
        if kind != "ended":
            return
        try:
            answer = json.loads(job.future.result())
        except ComparisonError:
            raise
        except ImportError as error:
            raise ComparisonError(
                f"A worker of the executor `{type(self._engine).__name__}` cannot import what a run needs: {error}."
                " Install this package there, in the version and with the packages of the command."
            ) from error
        except (Exception, futures.CancelledError) as error:
            if job.attempts < _ATTEMPTS:
                jobs[token] = self._submit(job.task, token, switchboard, job.attempts + 1)
                return
            message = f"The worker was lost {job.attempts} times: {type(error).__name__}: {error}"
            result = RunResult.of_this_process(job.task.run, status="crashed", error=message)
        else:
            found = RunResult.from_json(job.task.run, answer["result"]) if answer["result"] is not None else None
            result = found or RunResult.of_this_process(job.task.run, status="crashed", error=answer["explanation"])
            if not answer["is_shared"]:
                write_atomically(job.task.folder / "log.txt", answer["log"])
        self._running -= 1
        job.marker.unlink(missing_ok=True)
        del jobs[token]
        yield Event(job.task, "done", 1.0, result=result)

    def _submit(self, task: Task, token: str, switchboard: "_Switchboard", attempts: int = 1) -> _Job:
        task.folder.mkdir(parents=True, exist_ok=True)
        marker = task.folder / f".{token}.tmp"
        marker.touch()
        request = Request(
            token=token,
            name=task.run.key,
            task=pickle_task(task),
            folder=str(task.folder),
            marker=marker.name,
            threads=task.threads or self.threads,
            addresses=switchboard.addresses,
            key=switchboard.key,
            **self._of_all_runs,
        )
        try:
            future = self._engine.submit(perform_remotely, pickle.dumps(asdict(request)))
        except Exception as error:
            raise ComparisonError(
                f"The executor `{type(self._engine).__name__}` takes no runs any more: {type(error).__name__}: {error}."
                " Finished runs are kept: start it again, and run the same command again to resume."
            ) from error
        future.add_done_callback(lambda _: switchboard.messages.put((token, "ended")))
        return _Job(task, future, marker, attempts, has_started=attempts > 1)


class _Switchboard:
    """Listens to the runs on workers, and tells them by the end of their connections that nobody waits any more."""

    def __init__(self, messages: "queue.SimpleQueue[tuple[Any, ...]]") -> None:
        self.messages = messages
        self.key = secrets.token_bytes(32)
        self._listener = Listener(("0.0.0.0", 0), backlog=128, authkey=self.key)
        port = self._listener.address[1]
        self.addresses = [(host, port) for host in dict.fromkeys(["127.0.0.1", *_find_own_names()])]
        self._connections: list[Connection] = []
        self._is_open = True

    def __enter__(self) -> "_Switchboard":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_open = False
        self._listener.close()
        for link in self._connections:
            with suppress(OSError):
                link.close()

    def _accept(self) -> None:
        while self._is_open:
            with suppress(OSError, EOFError, AuthenticationError):
                link = self._listener.accept()
                self._connections.append(link)
                threading.Thread(target=self._listen, args=(link,), daemon=True).start()

    def _listen(self, link: Connection) -> None:
        with suppress(OSError, EOFError, TypeError):
            _, token = link.recv()
            self.messages.put((token, "started"))
            while True:
                kind, *content = link.recv()
                self.messages.put((token, kind, *content))


def _find_own_names() -> list[str]:
    """Return names and addresses by which other machines may reach this one."""
    names = [socket.gethostname(), socket.getfqdn()]
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing; chooses the interface of the default route
        names.append(probe.getsockname()[0])
    return names
