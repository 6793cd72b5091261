"""What happens in the process of one run."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Mapping
from io import BytesIO
from multiprocessing import connection, parent_process
from typing import Any

import torch

from lightning_znorm.compare.files import write_json
from lightning_znorm.compare.identity.values import GLOBAL_GENERATORS
from lightning_znorm.compare.runs.checkpoint import find_checkpoint
from lightning_znorm.compare.runs.perform import Task, perform


def run_task(payload: bytes, sender: Any) -> None:
    """Do a task in a process of its own.

    Args:
        payload: The task, by cloudpickle.
        sender: Connection that takes ``("progress", share, metrics)`` now and then, ``("done", result)`` at the end.

    """
    import cloudpickle

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    if hasattr(os, "setsid"):
        os.setsid()  # all that the run starts can be ended together with it
    threading.Thread(target=_follow_the_parent, daemon=True).start()
    # before the task is unpickled, which may import what looks at them
    folder, environment, start_method, threads, pickled = cloudpickle.loads(payload)
    os.environ.clear()  # the fork server's, which may have been started long ago
    os.environ.update(environment)
    # that of this process is the one by which it was started itself
    multiprocessing.set_start_method(start_method, force=True)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.argv = sys.argv[:1]  # LightningCLI warns of what it finds there
    torch.set_num_threads(threads)
    task: Task = cloudpickle.loads(pickled)
    # as JSON: a swept value need not be importable where the result is read
    result = perform(task, lambda share, metrics: sender.send(("progress", share, metrics))).to_json()
    if not task.is_trial:
        with contextlib.suppress(OSError):  # the parent tries again, and says what is wrong
            write_json(folder / "result.json", result)
            if result["status"] != "crashed":
                find_checkpoint(folder).unlink(missing_ok=True)
    sys.stdout.flush()
    sender.send(("done", result))


def pack_task(task: Task, environment: Mapping[str, str], start_method: str, threads: int) -> bytes:
    """Pickle a task for :func:`run_task`.

    Args:
        task: What is to be done.
        environment: All environment variables of its process.
        start_method: How it starts processes of its own by default, such as the workers of data loaders.
        threads: Number of threads for PyTorch.

    """
    import cloudpickle

    class Pickler(cloudpickle.CloudPickler):  # type: ignore[misc]
        def reducer_override(self, value: Any) -> Any:
            for find in GLOBAL_GENERATORS:  # the run's own, which its seed reaches, instead of a copy
                if value is find():
                    return find, ()
            return super().reducer_override(value)

    buffer = BytesIO()
    Pickler(buffer).dump(task)
    packed: bytes = cloudpickle.dumps((task.folder, dict(environment), start_method, threads, buffer.getvalue()))
    return packed


def _follow_the_parent() -> None:
    """End this process and all that it has started when the parent is gone, however that went."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        kill_group(os.getpid())
        os._exit(1)


def kill_group(leader: int) -> None:
    """Kill a run's process and whatever it has started, also where it has ended already."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader, signal.SIGKILL)
