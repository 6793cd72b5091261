"""Checkpoints from which an interrupted run resumes with the same results."""

import random
import time
import warnings
from multiprocessing import parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lightning_znorm._lightning import Callback, find_classes, get_rank, restart_epoch
from lightning_znorm.compare.files import replace_file
from lightning_znorm.compare.question.run import fingerprint
from lightning_znorm.compare.runs.result import identify_package

if TYPE_CHECKING:
    import lightning.pytorch as pl

_MIN_SECONDS = 60.0  # between two checkpoints
_MIN_RATIO = 50.0  # of that time to the duration of the last checkpoint
_WITH_FOLDERS = ("ModelParallelStrategy", "FSDPStrategy", "DeepSpeedStrategy")


class RunCheckpoint(Callback):
    """Save checkpoints of a training at the start of epochs, and restore what Lightning does not.

    At the start of an epoch all work of the last one is done: learning-rate schedulers, early stopping, the user's
    checkpoints. The states of all random number generators are saved, too, so that order, augmentation and dropout are
    those of an uninterrupted training, unless a loader has its own generator. Short trainings are not saved; long ones
    spend at most a fiftieth of their time on it. Strategies that save folders are not saved.

    Rank 0 decides when, and writes the file; each rank gets its own random states back.

    Args:
        path: The file of the last checkpoint.

    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._saved, self._cost = time.monotonic(), 0.0
        self._gathered: list[dict[str, Any]] = []
        self._restored: list[dict[str, Any]] = []

    def on_train_epoch_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Resume from a checkpoint that was loaded, or save one if it is time."""
        if self._restored:
            set_random_states(self._restored[trainer.global_rank])
            self._restored = []
            restart_epoch(trainer)
        elif not isinstance(trainer.strategy, find_classes("strategies", *_WITH_FOLDERS)):
            is_due = time.monotonic() >= self._saved + max(_MIN_SECONDS, _MIN_RATIO * self._cost)
            if trainer.strategy.broadcast(is_due):
                self._save(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all random number generators, of each rank."""
        return {"random": self._gathered}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states for the first epoch."""
        self._restored = state_dict["random"]

    def _save(self, trainer: "pl.Trainer") -> None:
        began = time.monotonic()
        self._gathered = _gather(get_random_states(), trainer.world_size)
        try:
            if trainer.is_global_zero:
                with replace_file(self._path) as temporary:
                    _save_together(trainer, temporary)
            else:
                _save_together(trainer, self._path)  # only rank 0 writes
        except Exception as error:  # the training goes on without
            warnings.warn(f"This run cannot be resumed if it is interrupted: {error}", stacklevel=2)
        self._gathered = []
        self._saved = time.monotonic()
        self._cost = self._saved - began


def _save_together(trainer: "pl.Trainer", path: Path) -> None:
    try:
        trainer.save_checkpoint(path)
    except Exception:
        trainer.strategy.barrier()  # where the ranks without an error wait
        raise


def _gather(value: Any, ranks: int) -> list[Any]:
    """Return the value of each rank."""
    values = [value] * ranks
    if ranks > 1:
        torch.distributed.all_gather_object(values, value)
    return values


def find_checkpoint(folder: Path) -> Path:
    """Return the path of a run's checkpoint by the current versions and commit; that of others has another name."""
    return folder / f"resume-{fingerprint(identify_package())[:8]}.ckpt"


def find_checkpoints(folder: Path) -> list[Path]:
    """Return the existing checkpoints of a run, by whatever versions."""
    return [*folder.glob("resume-*.ckpt")]


def prepare_resumption(checkpoint: Path) -> bool:
    """Return whether a run can resume; a damaged checkpoint is removed, and logged metrics are kept from the logger."""
    if not checkpoint.is_file():
        return False
    try:
        torch.load(checkpoint, map_location="cpu", weights_only=False, mmap=True)  # reads no tensor yet
    except Exception as error:
        warnings.warn(f"The checkpoint is damaged, so that the run starts again: {error}", stacklevel=2)
        if not get_rank():
            checkpoint.unlink()
        return False
    if not get_rank():
        keep_metrics(checkpoint.parent)
    return True


def discard_checkpoint(checkpoint: Path) -> None:
    """Remove the checkpoint that a run has crashed with, as it may be the cause; not because the command has ended."""
    parent = parent_process()
    if parent is None or parent.is_alive():
        checkpoint.unlink(missing_ok=True)


def keep_metrics(folder: Path) -> None:
    """Keep the metrics of a run before its interruption, which CSVLogger would delete."""
    metrics = folder / "metrics.csv"
    if metrics.is_file():
        metrics.rename(folder / f"metrics-{len([*folder.glob('metrics*.csv')])}.csv")


def get_random_states() -> dict[str, Any]:
    """Return the states of the generators of Python, NumPy and PyTorch."""
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state_all()} if torch.cuda.is_initialized() else {})


def set_random_states(states: dict[str, Any]) -> None:
    """Restore the states from :func:`get_random_states`."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if "cuda" in states:
        torch.cuda.set_rng_state_all(states["cuda"])
