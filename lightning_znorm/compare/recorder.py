"""The callback that notes down what happens in a run."""

import hashlib
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from lightning_znorm._compat import Callback, MisconfigurationException
from lightning_znorm.transform import GradientTransform

if TYPE_CHECKING:
    import lightning.pytorch as pl

_HASHED_BATCHES = 2  # of each epoch
_SECONDS_BETWEEN_REPORTS = 0.5

Report = Callable[[float, dict[str, float]], None]


class DivergedError(Exception):
    """The weights of a run have an inf or NaN."""


class Recorder(Callback):
    """Record curves, hashes and times of one training.

    Args:
        report: Called every now and then with the share of the training that is done and the newest metrics.

    Attributes:
        curve: A row per validation: ``epoch`` (1.0 after the first), ``step``, ``metrics``.
        losses: Mean training loss of each epoch, where ``training_step`` returns one.
        weights_hash: SHA-256 of the module's weights and buffers before the first step.
        batches_hash: SHA-256 of the dense tensors in the first two batches of each epoch.
        seconds_per_step: Median over the epochs of the time per training batch, the first of an epoch and validations
            left out.
        batch_seconds: Duration of the last validation batch (``validate``) and test batch (``test``).
        returned: Mean of each scalar that the last ``validation_step`` and ``test_step`` returned.
        validation_names: Names of what was logged in validations.

    """

    def __init__(self, report: Report | None = None) -> None:
        super().__init__()
        self.curve: list[dict[str, Any]] = []
        self.losses: list[float] = []
        self.weights_hash = ""
        self.batch_seconds: dict[str, float] = {}
        self.returned: dict[str, float] = {}
        self.validation_names: dict[str, None] = {}
        self.own_callbacks: list[Any] | None = None
        self._report = report
        self._batches = hashlib.sha256()
        self._epoch_seconds_per_step: list[float] = []
        self._other_names: set[str] = set()
        self._loss: list[Any] = [0.0, 0]
        self._reported = 0.0
        self._batches_of_epoch = 0
        self._last_epoch = 0.0
        self._pause = 0.0
        self._sums: dict[str, list[Any]] = {}

    @property
    def batches_hash(self) -> str:
        """SHA-256 of the batches so far."""
        return self._batches.hexdigest()

    @property
    def seconds_per_step(self) -> float | None:
        """Median over the epochs, ``None`` where no epoch had two batches."""
        times = sorted(self._epoch_seconds_per_step)
        return times[len(times) // 2] if times else None

    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        """Refuse gradient transforms that the module brings itself: every method would be run with them."""
        if stage != "fit" or self.own_callbacks is None:
            return
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            brought = all(callback is not known for known in self.own_callbacks)
            if brought and isinstance(callback, GradientTransform) and callback.enabled:
                raise MisconfigurationException(
                    f"`{type(pl_module).__name__}.configure_callbacks` returns a `{type(callback).__name__}`, which"
                    " would transform the gradients of every method. Take it out there; `compare` adds it where it"
                    " belongs."
                )

    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Hash the first weights."""
        digest = hashlib.sha256()
        for name, value in pl_module.state_dict().items():
            digest.update(name.encode())
            if isinstance(value, Tensor):
                _hash_tensor(value, digest)
        self.weights_hash = digest.hexdigest()

    def on_train_epoch_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Begin a new epoch."""
        self._loss = [0.0, 0]
        self._pause = 0.0

    def on_train_batch_start(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", batch: Any, batch_idx: int
    ) -> None:
        """Hash the first batches of an epoch."""
        if batch_idx < _HASHED_BATCHES:
            apply_to_collection(batch, Tensor, _hash_tensor, self._batches)

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
        ends = trainer.is_last_batch or 0 < trainer.max_steps <= trainer.global_step
        if ends and batch_idx > 0:
            _synchronize(pl_module)
            elapsed = time.perf_counter() - self._first_batch_ended - self._pause
            self._epoch_seconds_per_step.append(elapsed / batch_idx)
        self._tell(trainer)

    def on_train_epoch_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Note the epoch's loss, and stop a training whose weights are lost."""
        self._last_epoch = self._count_epochs(trainer)
        total, count = self._loss
        if count:
            self.losses.append(float(total) / count)
        if not _is_finite(pl_module):
            raise DivergedError(f"A weight is inf or NaN after epoch {trainer.current_epoch + 1}.")

    def on_validation_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Tell what validation logs from what was there before."""
        self._other_names.update(name for name in trainer.callback_metrics if name not in self.validation_names)
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
        """Add up what the step returned."""
        self._add("validate", "validation_step", outputs)

    def on_validation_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Add a row to the curve."""
        self._pause += time.perf_counter() - self._validation_started
        if trainer.sanity_checking:
            return
        metrics = {
            name: float(value) for name, value in trainer.callback_metrics.items() if name not in self._other_names
        }
        metrics.update(self._take_means())
        self.validation_names.update(dict.fromkeys(metrics))
        if trainer.state.fn == "fit":
            self._last_epoch = self._count_epochs(trainer)
        self.curve.append({"epoch": self._last_epoch, "step": trainer.global_step, "metrics": metrics})

    def has_validated_last(self, trainer: "pl.Trainer") -> bool:
        """Say whether the last step was followed by a validation."""
        return bool(self.curve) and self.curve[-1]["step"] == trainer.global_step

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
        """Add up what the step returned."""
        self._add("test", "test_step", outputs)

    def on_test_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Keep the means of what the steps returned."""
        self.returned = self._take_means()

    def _count_epochs(self, trainer: "pl.Trainer") -> float:
        batches = trainer.num_training_batches
        share = self._batches_of_epoch / batches if math.isfinite(batches) and batches else 1.0
        return round(trainer.current_epoch + share, 4)

    def _add(self, phase: str, step: str, outputs: Any) -> None:
        now = time.perf_counter()
        self.batch_seconds[phase] = now - getattr(self, "_batch_ended", now)
        self._batch_ended = now
        values = outputs.items() if isinstance(outputs, dict) else [(None, outputs)]
        for name, value in values:
            if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
                sums = self._sums.setdefault(step if name is None else f"{step}.{name}", [0.0, 0])
                sums[0] = sums[0] + value.detach().reshape(()).float()
                sums[1] += 1

    def _take_means(self) -> dict[str, float]:
        means = {name: float(total) / count for name, (total, count) in self._sums.items()}
        self._sums = {}
        return means

    def _tell(self, trainer: "pl.Trainer") -> None:
        now = time.perf_counter()
        if self._report is None or now - self._reported < _SECONDS_BETWEEN_REPORTS:
            return
        self._reported = now
        self._report(share_done(trainer, self._batches_of_epoch), self.curve[-1]["metrics"] if self.curve else {})


def share_done(trainer: "pl.Trainer", batches_of_epoch: int) -> float:
    """Return the share of the training that is done, 0 where its length is not known."""
    shares = [0.0]
    if trainer.max_epochs is not None and trainer.max_epochs > 0:
        batches = trainer.num_training_batches
        part = batches_of_epoch / batches if math.isfinite(batches) and batches else 0.0
        shares.append((trainer.current_epoch + part) / trainer.max_epochs)
    if trainer.max_steps > 0:
        shares.append(trainer.global_step / trainer.max_steps)
    return min(max(shares), 1.0)


def _hash_tensor(tensor: Tensor, digest: Any) -> Tensor:
    digest.update(f"{tensor.dtype}{tensor.layout}".encode())
    if tensor.layout is torch.strided:  # others have no bytes of their own; what they hold counts by their kind alone
        digest.update(f"{tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy())
    return tensor


def _is_finite(pl_module: "pl.LightningModule") -> bool:
    sums = [p.detach().abs().max().float() for p in pl_module.parameters() if p.numel()]
    return not sums or bool(torch.stack([value.to(sums[0].device) for value in sums]).isfinite().all())


def _synchronize(pl_module: "pl.LightningModule") -> None:
    if pl_module.device.type != "cpu":
        torch.accelerator.synchronize(pl_module.device)
