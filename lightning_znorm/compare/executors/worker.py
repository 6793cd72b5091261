"""The process of one run."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from io import BytesIO
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Any

import torch

from lightning_znorm._lightning import set_rank
from lightning_znorm.compare.files import find_log, write_json
from lightning_znorm.compare.identity.values import GENERATOR_FINDERS
from lightning_znorm.compare.runs.checkpoint import find_checkpoints
from lightning_znorm.compare.runs.perform import Task, perform


def run_task(payload: bytes, sender: Any) -> None:
    """Perform a packed task as its rank.

    Rank 0 sends ``("progress", share, metrics)`` repeatedly; each rank sends ``("done", result, time)`` in the end.
    """
    import cloudpickle

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C, and ends this process
    if hasattr(os, "setsid"):
        os.setsid()  # so that the run and its children can be ended together
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    # before the task is unpickled, as its modules may read the environment
    folder, environment, start_method, threads, rank, pickled_task = cloudpickle.loads(payload)
    os.environ.clear()  # an older one of the fork server
    os.environ.update(environment)
    multiprocessing.set_start_method(start_method, force=True)
    folder.mkdir(parents=True, exist_ok=True)
    with find_log(folder, rank).open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.argv = sys.argv[:1]  # LightningCLI warns of arguments in it
    torch.set_num_threads(threads)
    set_rank(rank)
    task: Task = cloudpickle.loads(pickled_task)
    if task.folder != folder:  # on a machine that does not see that of the command
        checkpoint = None if task.checkpoint is None else folder / task.checkpoint.name
        task = replace(task, folder=folder, checkpoint=checkpoint)

    def report(share: float, metrics: Mapping[str, float | None]) -> None:
        sender.send(("progress", share, metrics))

    # as JSON, as the parent may not be able to import a swept value
    result = perform(task, None if rank else report).to_json()
    # one of several processes does not know whose error comes first
    is_certain = result["status"] != "crashed" or environment.get("WORLD_SIZE", "1") == "1"
    if not task.is_trial and not rank and is_certain:
        with contextlib.suppress(OSError):  # the parent tries again, and reports the error
            write_json(folder / "result.json", result)
            if result["status"] != "crashed":
                for checkpoint in find_checkpoints(folder):
                    checkpoint.unlink(missing_ok=True)
    sys.stdout.flush()
    sender.send(("done", result, time.monotonic()))


def pickle_task(task: Task) -> bytes:
    """Pickle a task."""
    import cloudpickle

    class Pickler(cloudpickle.CloudPickler):  # type: ignore[misc]
        def reducer_override(self, value: Any) -> Any:
            for find in GENERATOR_FINDERS:  # the global generators of the run, not copies: it seeds them
                if value is find():
                    return find, ()
            return super().reducer_override(value)

    buffer = BytesIO()
    Pickler(buffer).dump(task)
    return buffer.getvalue()


def pack_task(
    pickled_task: bytes, folder: Path, environment: Mapping[str, str], start_method: str, threads: int, rank: int
) -> bytes:
    """Pack a pickled task for :func:`run_task`, with what its process needs before it reads the task."""
    import cloudpickle

    packed: bytes = cloudpickle.dumps((folder, dict(environment), start_method, threads, rank, pickled_task))
    return packed


def _exit_with_parent() -> None:
    """End this process and its children when the parent has ended."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        kill_group(os.getpid())
        os._exit(1)


def kill_group(leader: int) -> None:
    """Kill the process group of a run, also if its leader has ended."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader, signal.SIGKILL)
