"""The callback that records curves, hashes and times of a run."""

import hashlib
import math
import statistics
import time
from collections.abc import Callable
from copy import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from lightning_znorm._lightning import Callback, MisconfigurationError, find_classes
from lightning_znorm.compare.runs.hashes import get_local_part, hash_batch, hash_random_states, hash_weights
from lightning_znorm.compare.runs.result import EpochHashes, RunResult, Validation
from lightning_znorm.compare.runs.training import (
    ProgressReport,
    compute_means,
    compute_progress,
    count_epochs,
    stop_training,
)
from lightning_znorm.transform import GradientTransform

if TYPE_CHECKING:
    import lightning.pytorch as pl

_HASHED_BATCHES = 2  # of each epoch
_SECONDS_BETWEEN_REPORTS = 0.5
# attributes that a checkpoint contains
_SAVED = (
    *("curve", "losses", "steps", "epochs", "weights_hash", "epoch_hashes", "validation_names"),
    *("_batch_digests", "_epoch_seconds_per_step"),
)


class Recorder(Callback):
    """Record curves, hashes and times of one training.

    Args:
        report: Called now and then with the share of the training that is done and the newest metrics.
        relocate: Returns the folder for the checkpoints of a ``ModelCheckpoint``, given the configured one.

    Attributes:
        curve: The validations.
        losses: Mean training loss of each epoch over all ranks, if ``training_step`` returns one.
        steps: Number of optimizer steps.
        epochs: Number of epochs, ``None`` within one of unknown length.
        weights_hash: SHA-256 of the module's weights and buffers before the first step.
        epoch_hashes: Hashes at the end of each epoch.
        batch_seconds: Duration of the last validation batch (``validate``) and test batch (``test``).
        returned: Mean of each scalar that ``test_step`` returned, over all ranks.
        validation_names: Names of metrics that were logged in validations.
        configured_callbacks: Callbacks of the Trainer without those that the module adds.
        resumed: Number of times the training was resumed from a checkpoint.
        seconds_before: Duration of the training before that checkpoint.
        divergence: Where a weight became inf or NaN, ``None`` if none did.
        learning_rates: Initial rate of each parameter group of each optimizer.

    """

    def __init__(self, report: ProgressReport | None = None, relocate: Callable[[str], str] | None = None) -> None:
        super().__init__()
        self.curve: list[Validation] = []
        self.losses: list[float] = []
        self.steps = 0
        self.epochs: float | None = 0.0
        self.weights_hash = ""
        self.epoch_hashes: list[EpochHashes] = []
        self.batch_seconds: dict[str, float] = {}
        self.returned: dict[str, float] = {}
        self.validation_names: dict[str, None] = {}
        self.configured_callbacks: list[Any] | None = None
        self._report, self._relocate = report, relocate
        self.resumed = 0
        self.seconds_before = 0.0
        self.divergence: str | None = None
        self.learning_rates: list[float] = []
        self._began = time.perf_counter()
        self._batch_digests: list[bytes] = []
        self._epoch_seconds_per_step: list[float] = []
        self._metrics_before: dict[str, Any] = {}
        self._loss: list[Any] = [0.0, 0]
        self._last_report = 0.0
        self._batches_of_epoch = 0
        self._validation_seconds = 0.0
        self._sums: dict[str, list[Any]] = {}

    @property
    def batches_hash(self) -> str:
        """SHA-256 of the first two batches of each epoch so far."""
        return hashlib.sha256(b"".join(self._batch_digests)).hexdigest()

    @property
    def seconds_per_step(self) -> float | None:
        """Median over the epochs of the time per training batch; ``None`` if no epoch had two batches."""
        return statistics.median(self._epoch_seconds_per_step) if self._epoch_seconds_per_step else None

    def add_to(self, result: RunResult) -> None:
        """Add the records to a result."""
        result.steps, result.epochs, result.resumed = self.steps, self.epochs, self.resumed
        result.curve, result.train_loss, result.names = self.curve, [*self.losses], [*self.validation_names]
        result.weights_hash, result.batches_hash = self.weights_hash, self.batches_hash
        result.epoch_hashes = self.epoch_hashes

    def state_dict(self) -> dict[str, Any]:
        """Return the records for a checkpoint."""
        records = {name: copy(getattr(self, name)) for name in _SAVED}
        seconds = self.seconds_before + time.perf_counter() - self._began
        return records | {"resumed": self.resumed + 1, "seconds_before": seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the records of a checkpoint."""
        vars(self).update(state_dict)

    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        """Refuse gradient transforms that the module adds, and give each run a folder for checkpoints."""
        if stage != "fit" or self.configured_callbacks is None:
            return
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            is_checkpoint = isinstance(callback, find_classes("callbacks", "Checkpoint"))
            if self._relocate and is_checkpoint and getattr(callback, "dirpath", None) is not None:
                callback.dirpath = self._relocate(str(callback.dirpath))
            is_configured = any(callback is other for other in self.configured_callbacks)
            if isinstance(callback, GradientTransform) and callback.enabled and not is_configured:
                raise MisconfigurationError(
                    f"`{type(pl_module).__name__}.configure_callbacks` returns a `{type(callback).__name__}`, which"
                    " would transform the gradients of every method. Remove it there, and name it in `methods`."
                )

    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Record the learning rates, and hash the initial weights, unless lazy layers have none yet."""
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        # a schedule that warms up begins at 0
        self.learning_rates = [float(group.get("initial_lr", group.get("lr", math.nan))) for group in groups]
        if not self.weights_hash and not any(map(is_lazy, [*pl_module.parameters(), *pl_module.buffers()])):
            self.weights_hash = hash_weights(pl_module)

    def on_before_backward(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", loss: Tensor) -> None:
        """Hash the initial weights of a module with lazy layers."""
        self.weights_hash = self.weights_hash or hash_weights(pl_module)

    def on_train_epoch_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Begin a new epoch."""
        self._loss = [0.0, 0]
        self._validation_seconds = 0.0

    def on_train_batch_start(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", batch: Any, batch_idx: int
    ) -> None:
        """Hash the first batches of an epoch."""
        if batch_idx < _HASHED_BATCHES:
            digest = hashlib.sha256()
            hash_batch(batch, digest)
            self._batch_digests.append(digest.digest())

    def on_train_batch_end(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add up losses and times."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor) and loss.numel() == 1:
            self._loss[0] = self._loss[0] + loss.detach().reshape(()).float()
            self._loss[1] += 1
        if batch_idx == 0:
            _synchronize(pl_module)
            self._first_batch_ended = time.perf_counter()
        self._batches_of_epoch = batch_idx + 1
        self.steps, self.epochs = trainer.global_step, count_epochs(trainer, self._batches_of_epoch)
        ends = trainer.is_last_batch or trainer.should_stop or 0 < trainer.max_steps <= trainer.global_step
        if ends and batch_idx > 0:
            _synchronize(pl_module)
            elapsed = time.perf_counter() - self._first_batch_ended - self._validation_seconds
            self._epoch_seconds_per_step.append(elapsed / batch_idx)
        self._report_progress(trainer)

    def on_train_epoch_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Record the epoch's loss and hashes, and stop a training that diverged."""
        self.losses += compute_means(trainer, {"loss": self._loss} if self._loss[1] else {}).values()
        states = hash_random_states(pl_module.device)
        self.epoch_hashes.append(EpochHashes(self.batches_hash[:16], states[:16]))
        # no rank goes on alone
        if not trainer.strategy.reduce_boolean_decision(_has_finite_weights(pl_module)):
            self.divergence = f"A weight is inf or NaN after epoch {trainer.current_epoch + 1}."
            stop_training(trainer)

    def on_validation_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Keep the earlier metrics, as Lightning does not drop them."""
        self._metrics_before = dict(trainer.callback_metrics)
        self._validation_started = time.perf_counter()
        self._sums = {}

    def on_validation_batch_end(
        self,
        trainer: "pl.Trainer",
        pl_module: "pl.LightningModule",
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add up the scalars that the step returned."""
        self._add_outputs("validate", "validation_step", outputs)

    def on_validation_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Add a row to the curve."""
        self._validation_seconds += time.perf_counter() - self._validation_started
        if trainer.sanity_checking:
            return
        # a value that is logged is a new tensor
        metrics = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if value is not self._metrics_before.get(name)
        }
        metrics.update(compute_means(trainer, self._sums))
        self.validation_names.update(dict.fromkeys(metrics))
        self.curve.append(Validation(self.epochs, trainer.global_step, metrics))

    def has_validated_last(self, trainer: "pl.Trainer") -> bool:
        """Return whether the last step was followed by a validation."""
        return bool(self.curve) and self.curve[-1].step == trainer.global_step

    def on_test_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Begin the test."""
        self._sums = {}

    def on_test_batch_end(
        self,
        trainer: "pl.Trainer",
        pl_module: "pl.LightningModule",
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add up the scalars that the step returned."""
        self._add_outputs("test", "test_step", outputs)

    def on_test_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Keep the means of the scalars that the steps returned."""
        self.returned = compute_means(trainer, self._sums)

    def _add_outputs(self, phase: str, step: str, outputs: Any) -> None:
        now = time.perf_counter()
        self.batch_seconds[phase] = now - getattr(self, "_batch_ended", now)
        self._batch_ended = now
        values = outputs.items() if isinstance(outputs, dict) else [(None, outputs)]
        for name, value in values:
            if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
                sums = self._sums.setdefault(step if name is None else f"{step}.{name}", [0.0, 0])
                sums[0] = sums[0] + value.detach().reshape(()).float()
                sums[1] += 1

    def _report_progress(self, trainer: "pl.Trainer") -> None:
        now = time.perf_counter()
        if self._report is None or now - self._last_report < _SECONDS_BETWEEN_REPORTS:
            return
        self._last_report = now
        self._report(compute_progress(trainer, self._batches_of_epoch), self.curve[-1].metrics if self.curve else {})


def _has_finite_weights(pl_module: "pl.LightningModule") -> bool:
    """Return whether all weights of this rank are finite."""
    parts = [get_local_part(p.detach()) for p in pl_module.parameters() if not is_lazy(p)]
    largest = [part.abs().max().float() for part in parts if part.numel()]
    return not largest or bool(torch.stack([value.to(largest[0].device) for value in largest]).isfinite().all())


def _synchronize(pl_module: "pl.LightningModule") -> None:
    if pl_module.device.type != "cpu":
        torch.accelerator.synchronize(pl_module.device)
