"""One run from beginning to end."""

import time
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from lightning_znorm._lightning import find_classes, get_rank
from lightning_znorm.compare.identity.values import differing_keys
from lightning_znorm.compare.question.run import Run, fingerprint
from lightning_znorm.compare.runs.checkpoint import RunCheckpoint, discard_checkpoint, prepare_resumption
from lightning_znorm.compare.runs.loaders import count_batches, find_missing_hooks
from lightning_znorm.compare.runs.loggers import close_loggers
from lightning_znorm.compare.runs.recipes import Ingredients, Recipe
from lightning_znorm.compare.runs.recorder import Recorder
from lightning_znorm.compare.runs.result import RunResult, Seconds
from lightning_znorm.compare.runs.training import ProgressReport, TrialStopper, find_end
from lightning_znorm.errors import user_message


@dataclass(frozen=True)
class Task:
    """A run, or its trial, in a folder.

    Attributes:
        run: The run.
        recipe: How its ingredients are made.
        folder: Folder for its log and its result.
        is_trial: Whether it is only tried on a few batches.
        checkpoint: File from which an interrupted run resumes, ``None`` for a trial.
        identities: What the run depends on, as the parent process sees it: :func:`find_identities`, in a trial with the
            recipe's description.
        threads: Number of threads, ``None`` for the executor's choice.

    """

    run: Run
    recipe: Recipe
    folder: Path
    is_trial: bool = False
    checkpoint: Path | None = None
    identities: Mapping[str, Any] = field(default_factory=dict)
    threads: int | None = None


def perform(task: Task, report: ProgressReport | None = None) -> RunResult:
    """Train, from the run's checkpoint if it has one, validate and test; errors become part of the result.

    Args:
        task: The run or trial.
        report: Called now and then with the share of the training that is done and the newest metrics.

    """
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    recorder = Recorder(report, lambda folder: locate_checkpoints(folder, task))
    callbacks: list[Any] = [TrialStopper(), recorder] if task.is_trial else [recorder]
    callbacks += [RunCheckpoint(task.checkpoint)] if task.checkpoint else []
    began = time.perf_counter()
    result = RunResult.of_this_process(task.run, started=datetime.now(UTC).isoformat(timespec="seconds"))
    description = task.recipe.describe() if task.is_trial else {}
    result.unstable = differing_keys(task.identities, find_identities(task.run) | description)
    made = fitted = None
    loggers: list[Any] = []
    resumed_from: Path | None = None
    try:
        if task.checkpoint and prepare_resumption(task.checkpoint):
            resumed_from = task.checkpoint
        ingredients = task.recipe.make(task.run, task.folder, callbacks, task.is_trial)
        trainer, model, datamodule = ingredients.trainer, ingredients.model, ingredients.datamodule
        recorder.configured_callbacks, loggers = list(trainer.callbacks), trainer.loggers
        if task.is_trial:
            result.missing = find_missing_hooks(ingredients)
        made = time.perf_counter()
        # safe to load, as this package has saved it
        checkpoint = {"ckpt_path": resumed_from, "weights_only": False} if resumed_from else {}
        trainer.fit(model, datamodule=datamodule, **checkpoint)
        fitted = time.perf_counter()
        if trainer.interrupted:
            raise RuntimeError("The training was interrupted.")
        result.ended, result.stopped_early = find_end(trainer)
        if recorder.divergence:
            result.status, result.error, result.ended = "diverged", recorder.divergence, "divergence"
        if not (recorder.has_validated_last(trainer) or result.missing):
            trainer.validate(model, datamodule=datamodule, verbose=False)
        result.device = _get_device_name(model.device, trainer.world_size)
        if task.is_trial:
            result.lengths = count_batches(trainer)
            result.learning_rates = recorder.learning_rates
        if not result.missing:
            result.test = _run_test(ingredients, recorder)
        trainer.strategy.barrier()  # the result of rank 0 is that of all
    except BaseException as error:
        traceback.print_exc()
        if resumed_from:
            discard_checkpoint(resumed_from)
        message = user_message(error)
        result.status, result.rank = "crashed", get_rank()
        result.error = message or traceback.format_exception_only(error)[-1].strip()
        result.is_explained = message is not None or isinstance(
            error, find_classes("utilities.exceptions", "MisconfigurationException")
        )
    ended = time.perf_counter()
    close_loggers(loggers, failed=result.status == "crashed")
    recorder.add_to(result)
    result.threads = torch.get_num_threads()
    result.seconds = Seconds(
        make=(made or ended) - began,
        fit=(fitted or ended) - (made or ended) + recorder.seconds_before,
        all=ended - began + recorder.seconds_before,
        step=recorder.seconds_per_step,
        batch=dict(recorder.batch_seconds),
    )
    return result


def locate_checkpoints(folder: str, task: Task) -> str:
    """Return the folder for the run's checkpoints below the configured one; a trial's are in its own folder."""
    if task.is_trial:
        return str(task.folder / "checkpoints")
    return f"{folder.rstrip('/')}/{task.run.key}"  # no Path, as it may be a URL


def find_identities(run: Run) -> dict[str, Any]:
    """Return what distinguishes a run from others, as this process sees it."""
    values = {f"the swept value of {key}": fingerprint(value) for key, value in run.values.items()}
    return {f"method {run.method.label}": run.method.identity, **values}


def _run_test(ingredients: Ingredients, recorder: Recorder) -> dict[str, float | None]:
    results = ingredients.trainer.test(ingredients.model, datamodule=ingredients.datamodule, verbose=False)
    metrics: dict[str, float | None] = {name: float(value) for loader in results for name, value in loader.items()}
    return {**recorder.returned, **metrics}


def _get_device_name(device: torch.device, count: int) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{count} x {name}" if count > 1 else name
