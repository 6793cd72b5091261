"""One run from beginning to end, in whatever process."""

import time
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from lightning_znorm._lightning import find_classes
from lightning_znorm.compare.identity.values import differing_keys
from lightning_znorm.compare.question.plan import Run, fingerprint
from lightning_znorm.compare.runs.checkpoint import RunCheckpoint, find_checkpoint
from lightning_znorm.compare.runs.loaders import count_batches, find_missing_hooks
from lightning_znorm.compare.runs.recipes import Ingredients, Recipe
from lightning_znorm.compare.runs.recorder import DivergedError, Recorder
from lightning_znorm.compare.runs.result import RunResult, Seconds
from lightning_znorm.compare.runs.training import Report, TrialStopper, find_end
from lightning_znorm.errors import own_message


@dataclass(frozen=True)
class Task:
    """A run, or the trial of one, and where it is to happen.

    Attributes:
        run: Which one.
        recipe: Makes its ingredients.
        folder: Where its log and its result go.
        is_trial: Whether it is only tried, on a few batches.
        identities: What the run depends on, as the process sees it that asks for it: :func:`find_identities`, in a
            trial with the recipe's description.

    """

    run: Run
    recipe: Recipe
    folder: Path
    is_trial: bool = False
    identities: Mapping[str, Any] = field(default_factory=dict)


def perform(task: Task, report: Report | None = None) -> RunResult:
    """Train, validate and test; an exception becomes a part of the result.

    A run that was interrupted goes on from its checkpoint, if it has one.

    Args:
        task: What is to be done.
        report: Called every now and then with the share of the training that is done and the newest metrics.

    """
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    recorder = Recorder(report, lambda folder: locate_checkpoints(folder, task))
    path = find_checkpoint(task.folder)
    callbacks = [TrialStopper(), recorder] if task.is_trial else [recorder, RunCheckpoint(path)]
    began = time.perf_counter()
    result = RunResult.of_this_process(task.run, started=datetime.now(UTC).isoformat(timespec="seconds"))
    described = task.recipe.describe() if task.is_trial else {}
    result.unstable = differing_keys(task.identities, find_identities(task.run) | described)
    ready = fitted = None
    try:
        ingredients = task.recipe.make(task.run, task.folder, callbacks, task.is_trial)
        trainer, model, datamodule = ingredients.trainer, ingredients.model, ingredients.datamodule
        recorder.configured_callbacks = list(trainer.callbacks)
        if task.is_trial:
            result.missing = find_missing_hooks(ingredients)
        ready = time.perf_counter()
        # it is of this package's own making, and has the states of all callbacks in it
        resumed = {"ckpt_path": path, "weights_only": False} if path.exists() and not task.is_trial else {}
        trainer.fit(model, datamodule=datamodule, **resumed)
        fitted = time.perf_counter()
        if trainer.interrupted:
            raise RuntimeError("The training was interrupted.")
        result.ended, result.stopped_early = find_end(trainer)
        if not (recorder.has_validated_last(trainer) or result.missing):
            trainer.validate(model, datamodule=datamodule, verbose=False)
        result.device = _name_device(model.device)
        if task.is_trial:
            result.lengths = count_batches(trainer)
        if not result.missing:
            result.test = _test(ingredients, recorder)
    except DivergedError as error:
        result.status, result.error = "diverged", str(error)
    except BaseException as error:
        traceback.print_exc()
        message = own_message(error)
        result.status = "crashed"
        result.error = message or traceback.format_exception_only(error)[-1].strip()
        result.is_explained = message is not None or isinstance(
            error, find_classes("utilities.exceptions", "MisconfigurationException")
        )
    ended = time.perf_counter()
    recorder.fill_in(result)
    result.seconds = Seconds(
        make=(ready or ended) - began,
        fit=(fitted or ended) - (ready or ended) + recorder.seconds_before,
        all=ended - began + recorder.seconds_before,
        step=recorder.seconds_per_step,
        batch=dict(recorder.batch_seconds),
    )
    return result


def locate_checkpoints(folder: str, task: Task) -> str:
    """Return a run's folder below one that all runs name, a trial's in the trial's own."""
    if task.is_trial:
        return str(task.folder / "checkpoints")
    return f"{folder.rstrip('/')}/{task.run.key}"  # also of a remote one, with its protocol


def find_identities(run: Run) -> dict[str, Any]:
    """Return what tells a run from others, as this process sees it; only what others see alike can be recognized."""
    swept = {f"the swept value of {key}": fingerprint(value) for key, value in run.setting.values.items()}
    return {f"method {run.method.label}": run.method.identity(), **swept}


def _test(ingredients: Ingredients, recorder: Recorder) -> dict[str, float | None]:
    results = ingredients.trainer.test(ingredients.model, datamodule=ingredients.datamodule, verbose=False)
    metrics: dict[str, float | None] = {name: float(value) for loader in results for name, value in loader.items()}
    return {**recorder.returned, **metrics}


def _name_device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
