"""One run on a worker of an engine: what is sent there, and what the worker does with it."""

import atexit
import json
import os
import pickle
import platform
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import cache
from multiprocessing import AuthenticationError, connection
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

from lightning_znorm.compare.files import read_log
from lightning_znorm.compare.runs.result import find_versions
from lightning_znorm.errors import ComparisonError

_SECONDS_TO_CONNECT = 5.0
_LOG_LINES = 2000


@dataclass(frozen=True)
class Request:
    """A run for a worker; of plain types, so that it is read before any module of the user is imported.

    Attributes:
        token: Identifies the run for the command.
        name: Name of the run.
        task: The pickled task, which only the process of the run reads.
        folder: Its folder, as the command sees it.
        marker: A file in it, by which a worker knows that it sees the same folder.
        threads: Number of threads of each process.
        processes: Number of processes, see :func:`.count_processes`.
        preload: Modules that runs share.
        paths: Folders with the user's modules.
        working_directory: The command's.
        versions: Of Python and of the packages that must be the same.
        addresses: Where the command listens to progress.
        key: Key of these connections.

    """

    token: str
    name: str
    task: bytes
    folder: str
    marker: str
    threads: int
    processes: int | None
    preload: Sequence[str]
    paths: Sequence[str]
    working_directory: str
    versions: dict[str, str]
    addresses: Sequence[tuple[str, int]]
    key: bytes


@cache  # it takes as long as starting a run
def describe_installation() -> dict[str, str]:
    """Return the versions that a worker must share with the command."""
    return {"python": ".".join(platform.python_version_tuple()[:2]), **find_versions()}


def perform_remotely(pickled_request: bytes) -> bytes:
    """Perform a run on the worker that calls this, and return its result as JSON.

    The run is killed when the command that waits for it ends.

    Raises:
        ComparisonError: If the versions of packages differ from the command's.

    """
    request = Request(**pickle.loads(pickled_request))
    _check_installation(request.versions)
    is_shared = Path(request.folder, request.marker).is_file()
    folder = request.folder if is_shared else tempfile.mkdtemp(prefix="lightning-znorm-")
    link = _call(request)
    try:
        with closing(_get_server(request).connect()) as run:
            asked = {"task": request.task, "folder": folder, "threads": request.threads}
            asked |= {"processes": request.processes, "name": request.name, "preload": list(request.preload)}
            run.send_bytes(pickle.dumps(asked))
            result, explanation = _follow(run, link)
        log = "" if is_shared else read_log(Path(folder), lines=_LOG_LINES)
    finally:
        if link is not None:
            link.close()
        if not is_shared:
            shutil.rmtree(folder, ignore_errors=True)
    return json.dumps({"result": result, "explanation": explanation, "log": log, "is_shared": is_shared}).encode()


def _follow(run: Connection, link: Connection | None) -> tuple[Any, str]:
    """Pass on what a run reports until it is done; raise ``ConnectionError`` if nobody waits for it any more."""
    while True:
        ready = connection.wait([run] if link is None else [run, link])
        if run in ready:
            kind, *content = run.recv()
            if kind == "done":
                return content[0], content[1]
            if link is not None:
                link.send((kind, *content))
        elif link in ready:
            run.send("end")
            with suppress(EOFError, OSError):
                while True:  # until its processes are gone, and have released their devices
                    run.recv()
            raise ConnectionError("The command that waits for this run has ended.")


def _check_installation(expected: dict[str, str]) -> None:
    found = describe_installation()
    different = [
        f"{name} {found.get(name, 'missing')} (the command has {version})"
        for name, version in expected.items()
        if found.get(name) != version
    ]
    if different:
        raise ComparisonError(
            f"A worker on `{socket.gethostname()}` has other versions: {', '.join(different)}. Install the same ones"
            " there, as results depend on them."
        )


def _call(request: Request) -> Connection | None:
    """Connect to the command, ``None`` if it cannot be reached: then there is no progress."""
    for address in request.addresses:
        with suppress(OSError, EOFError, AuthenticationError):
            host, port = address
            socket.create_connection((host, port), _SECONDS_TO_CONNECT).close()  # `Client` has no time-out
            link = Client((host, port), authkey=request.key)
            link.send(("started", request.token))
            return link
    return None


class _RunServer:
    """The process beside this worker from which runs are forked."""

    def __init__(self, request: Request) -> None:
        self._key = secrets.token_bytes(32)
        paths = [path for path in request.paths if Path(path).is_dir()]
        folder = request.working_directory
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, *filter(None, sys.path)])}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lightning_znorm.compare.executors.run_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder if Path(folder).is_dir() else None,
            env=environment,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(self._key.hex() + "\n")
        self._process.stdin.flush()
        self._address = self._process.stdout.readline().strip()
        atexit.register(self._process.kill)

    def is_alive(self) -> bool:
        """Return whether it can be asked."""
        return bool(self._address) and self._process.poll() is None

    def connect(self) -> Connection:
        """Return a connection for one run."""
        return Client(self._address, authkey=self._key)


_servers: dict[tuple[str, ...], _RunServer] = {}
_lock = threading.Lock()


def _get_server(request: Request) -> _RunServer:
    """Return the server of this worker for a command's folders, which its first run starts."""
    key = (request.working_directory, *request.paths, *request.preload)
    with _lock:
        if key not in _servers or not _servers[key].is_alive():
            _servers[key] = _RunServer(request)
        if not _servers[key].is_alive():
            raise ComparisonError(f"A worker on `{socket.gethostname()}` cannot start the process of runs.")
        return _servers[key]
