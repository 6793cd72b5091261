"""What the classifier and the segmenter have in common: steps, metrics, optimizer."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import lightning.pytorch as pl
from torch import Tensor
from torchmetrics import MetricCollection

from lightning_znorm.vision._metrics import MeanLoss
from lightning_znorm.vision._optim import check_optimization, configure


class SupervisedModule(pl.LightningModule, ABC):
    """A module that is trained on pairs of inputs and targets and validated by torchmetrics.

    Logs ``train_loss`` per step and epoch, and ``val_`` and ``test_`` followed by ``loss`` and the names of the metrics
    per epoch, aggregated over the whole split and over all ranks. A batch may have a third tensor, the number of the
    case (such as the patient) of each sample, for the metrics that need it.

    Args:
        metrics: Metrics of a validation or test split, under the names that follow ``val_`` and ``test_``.
        optimizer: Name of a class in :mod:`torch.optim`.
        lr: Learning rate.
        optimizer_args: Further arguments of the optimizer.
        scheduler: Name of a class in :mod:`torch.optim.lr_scheduler`.
        scheduler_args: Arguments of the scheduler.
        case_metrics: Metrics that are logged where the batches have the cases, and take these as well.

    """

    def __init__(
        self,
        metrics: MetricCollection,
        optimizer: str,
        lr: float,
        optimizer_args: Mapping[str, Any] | None,
        scheduler: str | None,
        scheduler_args: Mapping[str, Any] | None,
        case_metrics: MetricCollection | None = None,
    ) -> None:
        super().__init__()
        self._optimization: dict[str, Any] = {
            "optimizer": optimizer,
            "lr": lr,
            "optimizer_args": optimizer_args,
            "scheduler": scheduler,
            "scheduler_args": scheduler_args,
        }
        check_optimization(**self._optimization)
        case_metrics = case_metrics or MetricCollection({})
        self.val_loss, self.test_loss = MeanLoss(), MeanLoss()
        self.val_metrics, self.val_case_metrics = metrics.clone(prefix="val_"), case_metrics.clone(prefix="val_")
        self.test_metrics, self.test_case_metrics = metrics.clone(prefix="test_"), case_metrics.clone(prefix="test_")

    @abstractmethod
    def evaluate(self, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return loss, predictions and targets of a batch, the latter two as the metrics take them."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        loss, _, _ = self.evaluate(batch)
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True, batch_size=len(batch[0]))
        return loss

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Add a batch to the validation metrics."""
        self._measure(batch, "val_loss", self.val_loss, self.val_metrics, self.val_case_metrics)

    def test_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Add a batch to the test metrics."""
        self._measure(batch, "test_loss", self.test_loss, self.test_metrics, self.test_case_metrics)

    def _measure(
        self,
        batch: Sequence[Tensor],
        name: str,
        mean_loss: MeanLoss,
        metrics: MetricCollection,
        case_metrics: MetricCollection,
    ) -> None:
        loss, predictions, targets = self.evaluate(batch)
        mean_loss.update(loss, len(batch[0]))
        self.log(name, mean_loss, batch_size=len(batch[0]))
        metrics.update(predictions, targets)
        logged = dict(metrics.items(keep_base=False, copy_state=False))
        if len(batch) > 2:
            case_metrics.update(predictions, targets, batch[2])
            logged.update(case_metrics.items(keep_base=False, copy_state=False))
        for position, (key, metric) in enumerate(logged.items()):
            self.log(key, metric, prog_bar=position == 0, batch_size=len(batch[0]))

    def configure_optimizers(self) -> Any:
        """Build optimizer and scheduler from their names."""
        steps, trainer = math.inf, None
        with suppress(RuntimeError):
            trainer = self.trainer
        if self._optimization["scheduler"] is not None and trainer is not None:
            steps = trainer.estimated_stepping_batches
        return configure(self.parameters(), **self._optimization, total_steps=steps)
