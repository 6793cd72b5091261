"""Who performs the runs of a comparison: processes of this machine, or an engine."""

from collections.abc import Iterable, Iterator, Mapping
from concurrent import futures
from contextlib import contextmanager
from typing import Any

from jsonargparse import ArgumentParser

from lightning_znorm.compare.executors.base import Executor
from lightning_znorm.compare.executors.futures import FuturesExecutor
from lightning_znorm.compare.executors.processes import ProcessExecutor
from lightning_znorm.compare.executors.slots import make_slots
from lightning_znorm.compare.runs.devices import count_devices, count_processes
from lightning_znorm.errors import ArgumentValueError, require_count, user_message


def make_executor(
    engine: Any, jobs: int | None, threads: int | None, trainer: Mapping[str, Any], modules: Iterable[str]
) -> Executor:
    """Return what performs the runs.

    Args:
        engine: A ``concurrent.futures.Executor``, ``None`` for processes of this machine.
        jobs: Number of runs side by side, ``None`` for the default.
        threads: Number of threads of each process, ``None`` for the default.
        trainer: Arguments of the Trainer.
        modules: Modules of the runs.

    """
    threads = None if threads is None else require_count("threads", threads, least=1)
    processes = count_processes(trainer)
    if engine is None:
        slots = make_slots(jobs, str(trainer.get("accelerator", "auto")), count_devices(trainer))
        return ProcessExecutor(slots, modules, processes, threads)
    jobs = None if jobs is None else require_count("jobs", jobs, least=1)
    return FuturesExecutor(engine, jobs, threads or 1, modules, processes)


@contextmanager
def start_engine(configuration: Any) -> Iterator[Any]:
    """Yield the executor of a configuration, ``None`` for none, and shut it down; raise ``ValueError`` if it fails.

    Args:
        configuration: Class path and arguments of a ``concurrent.futures.Executor``, as jsonargparse has them.

    """
    if configuration is None:
        yield None
        return
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--executor", type=futures.Executor)
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    try:
        engine = instantiate(parser.parse_object({"executor": configuration})).executor
    except Exception as error:
        message = user_message(error) or f"{type(error).__name__}: {error}"
        raise ArgumentValueError(
            f"Argument `executor`: `{configuration['class_path']}` cannot be started: {message}"
        ) from error
    try:
        yield engine
    finally:
        engine.shutdown(cancel_futures=True)
