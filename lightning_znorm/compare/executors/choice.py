"""Who performs the runs of a comparison: processes of this machine, or an engine."""

from collections.abc import Iterable
from typing import Any

from lightning_znorm.compare.executors.base import Executor
from lightning_znorm.compare.executors.futures import FuturesExecutor
from lightning_znorm.compare.executors.processes import ProcessExecutor
from lightning_znorm.compare.executors.slots import make_slots
from lightning_znorm.errors import require_count


def make_executor(engine: Any, jobs: int | None, accelerator: str, modules: Iterable[str]) -> Executor:
    """Return what performs the runs.

    Args:
        engine: A ``concurrent.futures.Executor``, ``None`` for processes of this machine.
        jobs: Number of runs side by side, ``None`` for the default.
        accelerator: Argument of the Trainer.
        modules: Modules of the runs.

    """
    if engine is None:
        return ProcessExecutor(make_slots(jobs, accelerator), preload=modules)
    return FuturesExecutor(engine, None if jobs is None else require_count("jobs", jobs, least=1), preload=modules)
