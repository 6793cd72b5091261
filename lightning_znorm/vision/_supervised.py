"""What the classifier and the segmenter have in common: steps, metrics, optimizer."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import MetricCollection

from lightning_znorm.errors import ArgumentTypeError, ArgumentValueError, describe
from lightning_znorm.vision._metrics import MeanLoss
from lightning_znorm.vision.schedulers import find_missing_length


class SupervisedModule(pl.LightningModule, ABC):
    """A module that is trained on pairs of inputs and targets and validated by torchmetrics.

    Logs ``train_loss`` per step and epoch, and ``val_`` and ``test_`` followed by ``loss`` and the names of the metrics
    per epoch, aggregated over the whole split and over all ranks. A batch may have a third tensor, the number of the
    case (such as the patient) of each sample, for the metrics that need it.

    The arguments of the constructors are the hyperparameters of a checkpoint, but for an optimizer and a scheduler that
    are given in Python, which ``torch.load`` would not take back by default.

    Args:
        metrics: Metrics of a validation or test split, under the names that follow ``val_`` and ``test_``.
        optimizer: Makes the optimizer of the parameters.
        lr_scheduler: Makes the scheduler of an optimizer.
        case_metrics: Metrics that are logged where the batches have the cases, and take these as well.

    """

    def __init__(
        self,
        metrics: MetricCollection,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None,
        case_metrics: MetricCollection | None = None,
    ) -> None:
        super().__init__()
        if not callable(optimizer):
            raise _not_callable("optimizer", "torch.optim.Adam or partial(torch.optim.SGD, lr=0.1)", optimizer)
        if lr_scheduler is not None and not callable(lr_scheduler):
            raise _not_callable("lr_scheduler", "partial(torch.optim.lr_scheduler.StepLR, step_size=100)", lr_scheduler)
        self.save_hyperparameters(ignore=["metrics", "case_metrics"])
        if callable(self.hparams.get("optimizer")):  # on the command line it is a class path
            del self.hparams["optimizer"], self.hparams["lr_scheduler"]
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        case_metrics = case_metrics or MetricCollection({})
        self.val_loss, self.test_loss = MeanLoss(), MeanLoss()
        self.val_metrics, self.val_case_metrics = metrics.clone(prefix="val_"), case_metrics.clone(prefix="val_")
        self.test_metrics, self.test_case_metrics = metrics.clone(prefix="test_"), case_metrics.clone(prefix="test_")

    @abstractmethod
    def evaluate(self, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return loss, predictions and targets of a batch, the latter two as the metrics take them."""

    @abstractmethod
    def to_probabilities(self, logits: Tensor) -> Tensor:
        """Return probabilities of the shape of the logits."""

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

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the probabilities of a batch, or of images alone."""
        images = batch[0] if isinstance(batch, (tuple, list)) else batch
        return self.to_probabilities(self(images))

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
        """Make the optimizer, and the scheduler, which steps with it; that of a plateau after each epoch."""
        with _named("optimizer"):
            optimizer = self.optimizer(self.parameters())
        if self.lr_scheduler is None:
            return optimizer
        length = find_missing_length(self.lr_scheduler)
        arguments = {} if length is None else {length: self._count_steps(length)}
        with _named("lr_scheduler"):
            scheduler = self.lr_scheduler(optimizer, **arguments)
        config: dict[str, Any] = {"scheduler": scheduler, "interval": "step"}
        if isinstance(scheduler, ReduceLROnPlateau):
            config.update(interval="epoch", monitor=getattr(scheduler, "monitor", "val_loss"))
        return {"optimizer": optimizer, "lr_scheduler": config}

    def _count_steps(self, length: str) -> int:
        steps = self.trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise ArgumentValueError(
                f"Argument `lr_scheduler` has no `{length}`, which is the length of the training by default, but the"
                f" training has no end. Set `max_epochs` or `max_steps` of the Trainer, or give `{length}`."
            )
        return int(steps)


@contextmanager
def _named(argument: str) -> Iterator[None]:
    """Name the argument in what PyTorch says of a learning rate or the like."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise ArgumentValueError(f"Argument `{argument}`: {error}") from error


def _not_callable(argument: str, example: str, value: object) -> ArgumentTypeError:
    return ArgumentTypeError(
        f"Expected argument `{argument}` to be a class or a function, such as {example}, but got {describe(value)}."
    )
