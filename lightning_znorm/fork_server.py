"""The process from which the runs of a comparison are forked: it imports what they share, once.

Importing Lightning takes seconds, so the command line starts this process first and imports Lightning beside it. Which
packages the user's modules need is known only after the configuration is parsed; their names are handed in later.
"""

import atexit
import contextlib
import ctypes
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from multiprocessing import forkserver
from pathlib import Path

PRELOAD = "LIGHTNING_ZNORM_PRELOAD"  # names of modules, separated by commas
_FILE = "LIGHTNING_ZNORM_PRELOAD_FILE"  # the same, in a file that comes later
_MODULE = "lightning_znorm.compare.executors.preload"
_POLL_SECONDS = 0.01
_PR_SET_PDEATHSIG = 1  # of Linux: the signal at the end of the parent

_file: Path | None = None


def start_early() -> None:
    """Start the process; it goes on importing when :func:`hand_in` gives it the names of further modules."""
    global _file
    if sys.platform != "linux":
        return
    _file = Path(tempfile.mkdtemp(prefix="lightning-znorm-"), f"{os.getpid()}.txt")
    atexit.register(clean_up)
    forkserver.set_forkserver_preload([_MODULE])
    with server_environment({_FILE: str(_file)}):
        forkserver.ensure_running()


def clean_up() -> None:
    """Remove the folder of a process that was started early and has been told nothing."""
    global _file
    if _file is not None:
        shutil.rmtree(_file.parent, ignore_errors=True)
        _file = None


def hand_in(modules: Iterable[str]) -> None:
    """Tell a process that was started early which modules to import, once."""
    global _file
    if _file is not None:
        temporary = _file.with_suffix(".tmp")
        temporary.write_text(",".join(modules))
        temporary.rename(_file)
        _file = None


def end_with_command() -> None:
    """Let the process itself, if it was started early, end with the command, and not after its imports."""
    if file := os.environ.get(_FILE):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(Path(file).stem):  # it ended before
            os._exit(1)


def find_modules() -> list[str]:
    """Return the names of the modules to import, in the process itself; wait for those that come later."""
    if file := os.environ.pop(_FILE, None):
        path = Path(file)
        while not path.exists() and os.getppid() == int(path.stem):  # as long as the command lives
            time.sleep(_POLL_SECONDS)
        names = path.read_text() if path.exists() else ""
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
            path.parent.rmdir()
    else:
        names = os.environ.get(PRELOAD, "")
    return [name for name in names.split(",") if name]


@contextlib.contextmanager
def server_environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set the environment in which the process is started."""
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    # without the NVML check, asking for a GPU starts CUDA, which does not survive a fork
    variables = {"PYTHONPATH": path, "PYTORCH_NVML_BASED_CUDA_CHECK": "1", **variables}
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
