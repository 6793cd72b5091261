"""What happens in the process of one run."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Any

import torch

from lightning_znorm import __version__
from lightning_znorm._lightning import find_classes
from lightning_znorm.compare.identity.provenance import find_provenance
from lightning_znorm.compare.identity.values import GLOBAL_GENERATORS, differing
from lightning_znorm.compare.question.plan import Run, fingerprint
from lightning_znorm.compare.runs.recipes import Ingredients, Recipe
from lightning_znorm.compare.runs.recorder import Brake, DivergedError, Recorder, find_end
from lightning_znorm.compare.runs.store import SCHEMA, as_json, write_json
from lightning_znorm.errors import own_message

_LONGEST_END = 1 << 16  # bytes of a log
PACKAGES = ("torch", "lightning", "pytorch-lightning")


@dataclass(frozen=True)
class Task:
    """A run, or the trial of one, and where it is to happen.

    Attributes:
        run: Which one.
        recipe: Makes its ingredients.
        folder: Where its log and its result go.
        probe: Whether it is only tried, on a few batches.
        threads: Number of threads for PyTorch, ``None`` for as many as it likes.
        identities: What the run depends on, as the process sees it that asks for it: :func:`find_identities`, in a
            trial with the recipe's description.
        start_method: How the run starts processes of its own by default, such as the workers of data loaders.
        environment: All environment variables of the run.

    """

    run: Run
    recipe: Recipe
    folder: Path
    probe: bool = False
    threads: int | None = None
    identities: Mapping[str, Any] = field(default_factory=dict)
    start_method: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


def work(payload: bytes, sender: Any) -> None:
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
    environment, start_method, folder, rest = cloudpickle.loads(payload)
    os.environ.clear()  # the fork server's, which may have been started long ago
    os.environ.update(environment)
    # that of this process is the one by which it was started itself
    multiprocessing.set_start_method(start_method, force=True)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.argv = sys.argv[:1]  # LightningCLI warns of what it finds there
    task: Task = cloudpickle.loads(rest)
    if task.threads is not None:
        torch.set_num_threads(task.threads)
    # a swept value need not be importable where the result is read
    result = as_json(perform(task, lambda share, metrics: sender.send(("progress", share, metrics))))
    if not task.probe:
        with contextlib.suppress(OSError):  # the parent tries again, and says what is wrong
            write_json(folder / "result.json", result)
    sys.stdout.flush()
    sender.send(("done", result))


def pack(task: Task) -> bytes:
    """Pickle a task for :func:`work`."""
    import cloudpickle

    class Pickler(cloudpickle.CloudPickler):  # type: ignore[misc]
        def reducer_override(self, value: Any) -> Any:
            for find in GLOBAL_GENERATORS:  # the run's own, which its seed reaches, instead of a copy
                if value is find():
                    return find, ()
            return super().reducer_override(value)

    buffer = BytesIO()
    Pickler(buffer).dump(task)
    packed: bytes = cloudpickle.dumps((dict(task.environment), task.start_method, task.folder, buffer.getvalue()))
    return packed


def place_checkpoints(folder: str, task: Task) -> str:
    """Return a run's folder below one that all runs name, a trial's in the trial's own."""
    if task.probe:
        return str(task.folder / "checkpoints")
    return f"{folder.rstrip('/')}/{task.run.key}"  # also of a remote one, with its protocol


def perform(task: Task, report: Any = None) -> dict[str, Any]:
    """Train, validate and test; an exception becomes a part of the result.

    Returns:
        The run, its ``status`` (``"finished"``, ``"diverged"``, ``"crashed"``), curves, test metrics, hashes, times,
        versions, and the ``commit`` of this package with whether it was ``dirty``, as JSON takes them.

    """
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    recorder = Recorder(report, lambda folder: place_checkpoints(folder, task))
    began = time.perf_counter()
    result: dict[str, Any] = {**describe(task.run), "status": "finished", "error": None, "test": {}}
    result |= {"started": datetime.now(UTC).isoformat(timespec="seconds"), "ended": None, "stopped_early": False}
    described = task.recipe.describe() if task.probe else {}
    result["unstable"] = differing(task.identities, find_identities(task.run) | described)
    ready = fitted = None
    try:
        ingredients = task.recipe.make(
            task.run, task.folder, [*([Brake()] if task.probe else []), recorder], task.probe
        )
        trainer, model, datamodule = ingredients.trainer, ingredients.model, ingredients.datamodule
        recorder.own_callbacks = list(trainer.callbacks)
        if task.probe:
            result["missing"] = find_missing_parts(ingredients)
        ready = time.perf_counter()
        trainer.fit(model, datamodule=datamodule)
        fitted = time.perf_counter()
        if trainer.interrupted:
            raise RuntimeError("The training was interrupted.")
        result["ended"], result["stopped_early"] = find_end(trainer)
        if not (recorder.has_validated_last(trainer) or result.get("missing")):
            trainer.validate(model, datamodule=datamodule, verbose=False)
        result["device"] = _name_device(model.device)
        if task.probe:
            result["lengths"] = measure_lengths(trainer)
        if not result.get("missing"):
            result["test"] = _test(ingredients, recorder)
    except DivergedError as error:
        result |= {"status": "diverged", "error": str(error)}
    except BaseException as error:
        traceback.print_exc()
        message = own_message(error)
        result |= {
            "status": "crashed",
            "error": message or traceback.format_exception_only(error)[-1].strip(),
            "is_explained": message is not None
            or isinstance(error, find_classes("utilities.exceptions", "MisconfigurationException")),
        }
    ended = time.perf_counter()
    result |= {
        "steps": recorder.steps,
        "epochs": recorder.epochs,
        "curve": recorder.curve,
        "train_loss": recorder.losses,
        "weights_hash": recorder.weights_hash,
        "batches_hash": recorder.batches_hash,
        "epoch_hashes": recorder.epoch_hashes,
        "seconds": {
            "make": (ready or ended) - began,
            "fit": (fitted or ended) - (ready or ended),
            "all": ended - began,
            "step": recorder.seconds_per_step,
            "batch": dict(recorder.batch_seconds),
        },
        "names": list(recorder.validation_names),
    }
    return result


def _test(ingredients: Ingredients, recorder: Recorder) -> dict[str, float]:
    results = ingredients.trainer.test(ingredients.model, datamodule=ingredients.datamodule, verbose=False)
    metrics = {name: float(value) for loader in results for name, value in loader.items()}
    return recorder.returned | metrics


def describe(run: Run) -> dict[str, Any]:
    """Return which run it is and what made it, for its result."""
    provenance = find_provenance()
    return {
        "schema": SCHEMA,
        "method": run.method.label,
        "identity": run.method.identity(),
        "setting": dict(run.setting),
        "seed": run.seed,
        "versions": find_versions(),
        "commit": provenance.commit,
        "dirty": provenance.dirty,
    }


def find_identities(run: Run) -> dict[str, Any]:
    """Return what tells a run from others, as this process sees it; only what others see alike can be recognized."""
    swept = {f"the swept value of {key}": fingerprint(value) for key, value in run.setting.items()}
    return {f"method {run.method.label}": run.method.identity(), **swept}


def find_versions() -> dict[str, str]:
    """Return the versions of the packages that matter."""
    versions = {"lightning-znorm": __version__}  # of the code that runs, whatever else is installed
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def find_missing_parts(ingredients: Ingredients) -> list[str]:
    """Name the steps and loaders that a comparison needs and that nobody has written.

    Returns:
        Some of ``"val_dataloader"``, ``"validation_step"``, ``"test_dataloader"``, ``"test_step"``.

    """
    model, datamodule = ingredients.model, ingredients.datamodule
    missing = [step for step in ("validation_step", "test_step") if not _overrides(model, step)]
    for loader in ("val_dataloader", "test_dataloader"):
        if not _overrides(model, loader) and not (datamodule is not None and _overrides(datamodule, loader)):
            missing.append(loader)
    return missing


def _overrides(owner: Any, name: str) -> bool:
    """Say whether a method is not the empty one of Lightning."""
    method = getattr(type(owner), name, None)
    for base in type(owner).__mro__:
        if base.__module__.startswith(("lightning.pytorch.core", "pytorch_lightning.core")) and name in vars(base):
            return method is not vars(base)[name]
    return method is not None


def measure_lengths(trainer: Any) -> dict[str, float | None]:
    """Return the numbers of batches per epoch and split in a Trainer's loaders, whatever its limits."""
    loaders = {"train": trainer.train_dataloader, "validate": trainer.val_dataloaders}
    return {split: _count(found) for split, found in loaders.items()}


def _count(loaders: Any) -> float | None:
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    if isinstance(loaders, (list, tuple)):
        counts = [_count(loader) for loader in loaders]
        return None if None in counts else float(sum(count or 0 for count in counts))
    try:
        return float(len(loaders))
    except (TypeError, NotImplementedError):  # as Lightning does
        return None


def _name_device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _follow_the_parent() -> None:
    """End this process and all that it has started when the parent is gone, however that went."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        end_group(os.getpid())
        os._exit(1)


def end_group(leader: int) -> None:
    """Kill a run's process and whatever it has started, also where it has ended already."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader, signal.SIGKILL)


def read_log(folder: Path, lines: int = 15) -> str:
    """Return the end of a run's log, at most 64 kB of it."""
    try:
        with (folder / "log.txt").open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _LONGEST_END))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
