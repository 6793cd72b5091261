"""Python programs that start at once: each is forked from a server that has imported the packages already.

``run`` and ``start`` are to :func:`subprocess.run` and :class:`subprocess.Popen` what a warm engine is to a cold one. A
program has its own process, folder, environment, standard streams and ``__main__``. What is read when the interpreter
starts (``PYTHONHASHSEED``, ``-X`` options) or when torch is imported cannot be changed: such tests start Python itself.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import json
import multiprocessing.process
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import types
from pathlib import Path

ROOT = Path(__file__).parents[1]
PRELOADED = [
    "lightning_znorm.compare.command",
    "lightning_znorm.compare.worker",
    "lightning_znorm.cli",
    "lightning_znorm.monitor",
    "lightning_znorm.vision.classification",
    "lightning_znorm.vision.segmentation",
    "lightning.pytorch.cli",
    "pytorch_lightning.cli",
    "matplotlib.figure",
    "nilearn",
    "psutil",
    "pandas",
    "sklearn.datasets",
    "scipy.stats",
    "torch.distributed",
    "torch.optim",
    "yaml",
]


def run(*command, timeout=280, env=None, text=True):
    """Run ``script.py …``, ``-m module …`` or ``-c source …`` to its end, and return a CompletedProcess."""
    program = start(*command, env=env, text=text)
    out, err = program.communicate(timeout=timeout)
    return subprocess.CompletedProcess(command, program.returncode, out, err)


def start(*command, env=None, text=True):
    """Start a program as ``run`` does, and return it while it runs."""
    return Program([str(word) for word in command], {**os.environ, **(env or {})}, text)


class Program(subprocess.Popen):
    """A process that the server has forked, with the methods of a Popen object."""

    def __init__(self, command, environment, text):
        readers, writers = zip(*(os.pipe() for _ in range(2)), strict=True)
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(_address())
        request = json.dumps({"command": command, "environment": environment, "folder": str(Path.cwd())}).encode()
        socket.send_fds(self._connection, [len(request).to_bytes(8, "big")], list(writers))
        self._connection.sendall(request)
        for writer in writers:
            os.close(writer)
        self.pid = int(self._connection.recv(16))
        self.args, self.returncode, self.stdin, self._input = command, None, None, None
        self.text_mode, self.encoding, self.errors, self.universal_newlines = text, None, None, text
        self._communication_started, self._child_created, self._sigint_wait_secs = False, True, 0.25
        self._waitpid_lock = contextlib.nullcontext()
        mode = {"mode": "r", "encoding": "utf-8", "errors": "replace"} if text else {"mode": "rb"}
        self.stdout, self.stderr = (os.fdopen(reader, **mode) for reader in readers)

    def poll(self):
        return self._status(0)

    def _internal_poll(self, *args, **kwargs):
        return self._status(0)

    def wait(self, timeout=None):
        if self._status(timeout) is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def _status(self, timeout):
        if self.returncode is None and select.select([self._connection], [], [], timeout)[0]:
            self.returncode = int(self._connection.recv(16))
            self._connection.close()
        return self.returncode

    def __del__(self):
        pass


@functools.cache
def _address():
    """Start the server of this process, and return where it listens."""
    folder = tempfile.mkdtemp(prefix="warm-")
    address = f"{folder}/socket"
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.warm", address], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert server.stdout.readline() == b"ready\n"
    atexit.register(server.kill)
    return address


def serve(address):
    """Fork a program for each connection; return in the program, with its request."""
    for module in PRELOADED:
        importlib.import_module(module)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    gc.collect()
    gc.freeze()
    print("ready", flush=True)
    while True:
        if sys.stdin in select.select([listener, sys.stdin], [], [])[0]:
            sys.exit()  # the tests are over, in whatever way
        connection, _ = listener.accept()
        if os.fork():
            connection.close()
            continue
        listener.close()
        return attend(connection)


def attend(connection):
    """Fork the program, and tell the one who asked for it how it ends."""
    header, descriptors, _, _ = socket.recv_fds(connection, 8, 2)
    size, request = int.from_bytes(header, "big"), b""
    while len(request) < size:
        request += connection.recv(size - len(request))
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if pid := os.fork():
        for descriptor in descriptors:
            os.close(descriptor)
        connection.sendall(f"{pid}\n".encode())
        _, status = os.waitpid(pid, 0)
        with contextlib.suppress(BrokenPipeError):
            connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
        os._exit(0)
    connection.close()
    for number, descriptor in enumerate(descriptors, start=1):
        os.dup2(descriptor, number)
        os.close(descriptor)
    return json.loads(request)


def perform(command, environment, folder):
    """Be the program."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    multiprocessing.process.ORIGINAL_DIR = folder
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    encoding = environment.get("PYTHONIOENCODING", "utf-8")
    sys.stdout = os.fdopen(1, "w", encoding=encoding, closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding=encoding, errors="backslashreplace", buffering=1, closefd=False)
    extra = [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]
    sys.path[:1] = []
    if command[0] == "-m":
        sys.argv = command[1:]
        sys.path[:0] = [folder, *extra]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    elif command[0] == "-c":
        sys.argv = ["-c", *command[2:]]
        sys.path[:0] = ["", *extra]
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(command[1], "<string>", "exec"), vars(sys.modules["__main__"]))
    else:
        sys.argv = command
        sys.path[:0] = [str(Path(command[0]).parent), *extra]
        runpy.run_path(command[0], run_name="__main__")


def end(program):
    """Run the program, and end the process without tidying up what the server has imported."""
    status = 0
    try:
        program()
    except SystemExit as error:
        status = error.code
        if status is not None and not isinstance(status, int):
            print(status, file=sys.stderr)
            status = 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        if isinstance(error, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status or 0)


if __name__ == "__main__":
    request = serve(sys.argv[1])
    end(lambda: perform(**request))
