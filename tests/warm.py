"""Python programs that start at once: each is forked from a server that has imported the packages already.

``run`` and ``start`` are to :func:`subprocess.run` and :class:`subprocess.Popen` what a warm engine is to a cold one. A
program has its own process, folder, environment, standard streams and ``__main__``, and so has the fork server of
``multiprocessing`` that it may start; that of the tests' own process comes from there too. What is read when the
interpreter starts (``PYTHONHASHSEED``, ``-X`` options) or when torch is imported cannot be changed: such tests start
Python itself. A program that hangs is ended with its test.
"""

import atexit
import contextlib
import fcntl
import functools
import gc
import importlib
import json
import multiprocessing.process
import multiprocessing.util
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
import weakref
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
PRELOADED = [
    "lightning_znorm.compare.command",
    "lightning_znorm.compare.executors.worker",
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


_SHARED = "TESTS_WARM_SERVER"
started = weakref.WeakSet()


def run(*command, env=None, text=True):
    """Run ``script.py …``, ``-m module …`` or ``-c source …`` to its end, and return a CompletedProcess."""
    program = start(*command, env=env, text=text)
    out, err = program.communicate()
    return subprocess.CompletedProcess(command, program.returncode, out, err)


def start(*command, env=None, text=True):
    """Start a program as ``run`` does, and return it while it runs."""
    return Program([str(word) for word in command], {**os.environ, **(env or {})}, text)


class Program:
    """A process that the server has forked, with methods of a Popen object."""

    def __init__(self, command, environment, text):
        readers, writers = zip(*(os.pipe() for _ in range(2)), strict=True)
        self._connection = _connect()
        send(self._connection, command, environment, dict(enumerate(writers, start=1)))
        for writer in writers:
            os.close(writer)
        self.pid, self.returncode = int(self._connection.recv(16)), None
        mode = {"mode": "r", "encoding": "utf-8", "errors": "replace"} if text else {"mode": "rb"}
        self.stdout, self.stderr = (os.fdopen(reader, **mode) for reader in readers)
        started.add(self)

    def poll(self):
        return self.wait() if select.select([self._connection], [], [], 0)[0] else self.returncode

    def wait(self):
        if self.returncode is None:
            self.returncode = int(self._connection.recv(16))
        return self.returncode

    def communicate(self):
        errors = []
        reader = threading.Thread(target=lambda: errors.append(self.stderr.read()), daemon=True)
        reader.start()
        out = self.stdout.read()
        reader.join()
        self.wait()
        return out, errors[0]

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def run_ranks(script, count=2):
    """Run a script as the ranks of a distributed training, and return a CompletedProcess for each."""
    ranks = [{"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(count)} for rank in range(count)]
    programs = [start(script, env=environment) for environment in ranks]
    outputs = [program.communicate() for program in programs]
    return [
        subprocess.CompletedProcess([script], program.returncode, *output)
        for program, output in zip(programs, outputs, strict=True)
    ]


def send(connection, command, environment, descriptors):
    """Ask for a program, with these descriptors under these numbers."""
    request = {"command": command, "environment": dict(environment), "folder": os.getcwd()}
    message = json.dumps([request, list(descriptors)]).encode()
    socket.send_fds(connection, [len(message).to_bytes(8, "big")], list(descriptors.values()))
    connection.sendall(message)


def receive(connection):
    """Return the request and what puts its descriptors in place; None if nothing is asked for."""
    header, descriptors, _, _ = socket.recv_fds(connection, 8, 8)
    if not header:
        return None
    size, message = int.from_bytes(header, "big"), b""
    while len(message) < size:
        message += connection.recv(size - len(message))
    request, numbers = json.loads(message)
    # out of the way of each other's numbers
    high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 512) for descriptor in descriptors]
    for descriptor in descriptors:
        os.close(descriptor)
    return request, dict(zip(numbers, high, strict=True))


def share():
    """Start the server of this process and of those that it starts."""
    os.environ[_SHARED] = _start_server()


def _connect():
    address = os.environ.get(_SHARED) or _start_server()
    while not Path(address).exists():
        time.sleep(0.1)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    return connection


@functools.cache
def _start_server():
    """Start a server that ends with this process, and return where it will listen."""
    address = f"{tempfile.mkdtemp(prefix='warm-')}/socket"
    server = subprocess.Popen([sys.executable, "-m", "tests.warm", address], cwd=ROOT, stdin=subprocess.PIPE)
    atexit.register(server.kill)
    return address


def start_fork_server_by(connect, find_pid):
    """Let the fork server of this process be what is asked for by a connection; a second one is cold if that fails.

    ``connect`` returns the connection, ``find_pid`` the child of this process that stands for the server.
    """
    spawn = multiprocessing.util.spawnv_passfds

    def spawn_warm(path, args, descriptors):
        connection = connect() if "multiprocessing.forkserver" in args[-1] else None
        if connection is None or connection.fileno() < 0:
            return spawn(path, args, descriptors)
        with connection:
            send(connection, args[-2:], os.environ, {number: number for number in (1, 2, *descriptors)})
            return find_pid(connection)

    multiprocessing.util.spawnv_passfds = spawn_warm


def lend_fork_server():
    """Let the fork server of this process be forked as programs are."""
    start_fork_server_by(_connect, _wait_in_a_child)


def _wait_in_a_child(connection):
    """Return a child that ends when the program at the other end does, for `waitpid`."""
    connection.recv(16)
    if pid := os.fork():
        return pid
    kept = connection.fileno()
    os.closerange(0, kept)
    os.closerange(kept + 1, 1 << 16)
    connection.recv(16)
    os._exit(0)


def serve(address):
    """Fork a program for each connection; return in the program, with its request."""
    for module in PRELOADED:
        importlib.import_module(module)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{address}.tmp")
    listener.listen(64)
    gc.collect()
    gc.freeze()
    os.rename(f"{address}.tmp", address)  # it is ready
    programs = {}
    while True:
        for ready in select.select([listener, sys.stdin, *programs], [], [])[0]:
            if ready is sys.stdin:
                sys.exit()  # the tests are over, in whatever way
            if ready is listener:
                connection, _ = listener.accept()
                if (received := receive(connection)) is None:
                    connection.close()
                    continue
                request, descriptors = received
                if not (pid := os.fork()):
                    for ours in (listener, connection, *(other for _, other in programs.values())):
                        ours.close()
                    for other in programs:
                        os.close(other)
                    place(descriptors)
                    return (spare() if is_comparison(**request) else None) or request
                for descriptor in descriptors.values():
                    os.close(descriptor)
                with contextlib.suppress(BrokenPipeError):
                    connection.sendall(f"{pid}\n".encode())
                programs[os.pidfd_open(pid)] = pid, connection
            else:
                pid, connection = programs.pop(ready)
                os.close(ready)
                _, status = os.waitpid(pid, 0)
                with connection, contextlib.suppress(BrokenPipeError):
                    connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())


def is_comparison(command, folder, **_):
    """Say whether a program may start a fork server; one that does all the same starts a cold one."""
    scripts = [Path(folder, word) for word in command if word.endswith(".py")]
    texts = [*command, *(script.read_text() for script in scripts if script.is_file())]
    return any("compare" in text and "forkserver" not in text for text in texts)


def spare():
    """Fork a process that becomes a comparison's fork server if it starts one; return there, with the request."""
    asking, asked = socket.socketpair()
    if pid := os.fork():
        asked.close()
        start_fork_server_by(lambda: asking, lambda _: pid)
        return None
    asking.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    received = receive(asked)
    if received is None:
        os._exit(0)
    asked.close()
    request, descriptors = received
    place(descriptors)
    return request


def place(descriptors):
    for number, descriptor in descriptors.items():
        os.dup2(descriptor, number)
        os.close(descriptor)


def perform(command, environment, folder):
    """Be the program."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    multiprocessing.process.ORIGINAL_DIR = folder
    np.random.seed()
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
