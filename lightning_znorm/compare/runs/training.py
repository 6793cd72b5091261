"""The progress of a training, why it ended, how to end it early, and means over its ranks."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from lightning_znorm._lightning import Callback, find_classes

if TYPE_CHECKING:
    import lightning.pytorch as pl

_TRIAL_BATCHES = 4

ProgressReport = Callable[[float, Mapping[str, float | None]], None]


def compute_progress(trainer: "pl.Trainer", batches_of_epoch: int) -> float:
    """Return the share of the training that is done, 0 if its length is unknown."""
    shares = [0.0]
    if trainer.max_epochs is not None and trainer.max_epochs > 0:
        batches = trainer.num_training_batches
        share_of_epoch = batches_of_epoch / batches if math.isfinite(batches) and batches else 0.0
        shares.append((trainer.current_epoch + share_of_epoch) / trainer.max_epochs)
    if trainer.max_steps > 0:
        shares.append(trainer.global_step / trainer.max_steps)
    return min(max(shares), 1.0)


class TrialStopper(Callback):
    """Stop a trial after a few batches of training, regardless of its configuration."""

    def __init__(self) -> None:
        super().__init__()
        self._batches = 0

    def on_train_batch_end(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop after the last batch."""
        self._batches += 1
        if self._batches >= _TRIAL_BATCHES:
            stop_training(trainer)


def stop_training(trainer: "pl.Trainer") -> None:
    """Stop a training, also before ``min_epochs`` or ``min_steps``."""
    trainer.fit_loop.min_epochs = trainer.fit_loop.epoch_loop.min_steps = None
    trainer.should_stop = True


def find_end(trainer: "pl.Trainer") -> tuple[str, bool]:
    """Return why a training ended, and whether that was before ``max_epochs`` and ``max_steps``."""
    if 0 < trainer.max_steps <= trainer.global_step:
        return "max_steps", False
    if trainer.max_epochs is not None and 0 <= trainer.max_epochs <= trainer.current_epoch:
        return "max_epochs", False
    timers, stoppers = find_classes("callbacks", "Timer"), find_classes("callbacks", "EarlyStopping")
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, timers) and (left := callback.time_remaining()) is not None and left <= 0:
            return "max_time", True
        if isinstance(callback, stoppers) and callback.stopping_reason.value:
            return f"early stopping ({type(callback).__name__})", True
    return "trainer.should_stop" if trainer.should_stop else "no more training batches", True


def count_epochs(trainer: "pl.Trainer", batches_of_epoch: int) -> float | None:
    """Return the number of epochs so far, ``None`` within one of unknown length."""
    batches = trainer.num_training_batches
    if trainer.is_last_batch:
        return trainer.current_epoch + 1.0
    return round(trainer.current_epoch + batches_of_epoch / batches, 4) if math.isfinite(batches) else None


def compute_means(trainer: "pl.Trainer", sums: Mapping[str, Sequence[Any]]) -> dict[str, float]:
    """Return the mean of each sum of a number of values, over all ranks; of those that rank 0 has."""
    if trainer.world_size == 1:
        return {name: float(total) / count for name, (total, count) in sums.items()}
    names = trainer.strategy.broadcast([*sums])
    if not names:
        return {}
    own = [[float(value) for value in sums.get(name, (0.0, 0))] for name in names]
    totals = trainer.strategy.reduce(
        torch.tensor(own, dtype=torch.float64, device=trainer.strategy.root_device), reduce_op="sum"
    )
    return {name: total / count for name, (total, count) in zip(names, totals.tolist(), strict=True)}
