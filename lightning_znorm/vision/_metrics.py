"""Ratios of true and false positives and negatives, averaged over the classes that occur in the targets."""

from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import (
    binary_stat_scores,
    multiclass_stat_scores,
    multilabel_stat_scores,
)
from torchmetrics.utilities import dim_zero_cat

from lightning_znorm.errors import DataError

Task = Literal["binary", "multilabel", "multiclass"]
Ratio = Literal["dice", "iou", "precision", "sensitivity", "specificity"]


def average_ratio(ratio: Ratio, tp: Tensor, fp: Tensor, tn: Tensor, fn: Tensor) -> Tensor:
    """Average a ratio of counts ``(num_classes,)`` over the classes with a positive target.

    For the specificity, with a negative one. A ratio 0/0, the precision of a class that is never predicted, is 0. If no
    class counts, the average is 1 if every prediction is right, else 0.

        >>> average_ratio("dice", *torch.tensor([[8, 0], [1, 2], [9, 18], [2, 0]]))  # the second class does not occur
        tensor(0.8421)

    """
    part, whole = {
        "dice": (2 * tp, 2 * tp + fp + fn),
        "iou": (tp, tp + fp + fn),
        "precision": (tp, tp + fp),
        "sensitivity": (tp, tp + fn),
        "specificity": (tn, tn + fp),
    }[ratio]
    occurs = tn + fp > 0 if ratio == "specificity" else tp + fn > 0
    if not occurs.any():
        return ((fp + fn).sum() == 0).float()
    return (part.float() / whole.clamp(min=1).float())[occurs].mean()


class AverageRatio(Metric):
    """A ratio by the counts of a whole split, see :func:`average_ratio`; Dice is F1, and sensitivity recall."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    tp: Tensor
    fp: Tensor
    tn: Tensor
    fn: Tensor

    def __init__(self, ratio: Ratio, task: Task, num_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ratio: Ratio = ratio
        self.task: Task = task
        self.num_classes = num_classes
        for name in ("tp", "fp", "tn", "fn"):
            self.add_state(name, torch.zeros(num_classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Add the counts of a batch."""
        tp, fp, tn, fn = _count(predictions, targets, self.task, self.num_classes)
        self.tp, self.fp, self.tn, self.fn = self.tp + tp, self.fp + fp, self.tn + tn, self.fn + fn

    def compute(self) -> Tensor:
        """Return the average."""
        return average_ratio(self.ratio, self.tp, self.fp, self.tn, self.fn)


class MeanLoss(Metric):
    """The mean of the losses of a split's batches, each with the number of its samples as its weight.

    Unlike ``self.log(…, sync_dist=True)`` of a tensor it is exact where ranks have unequal numbers of samples, and it
    does not sum in the half precision to which a Trainer converts the states of other metrics.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    losses: list[Tensor]
    counts: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("losses", [], dist_reduce_fx="cat")
        self.add_state("counts", [], dist_reduce_fx="cat")

    def update(self, loss: Tensor, count: int) -> None:
        """Add the loss of a batch of so many samples."""
        loss = loss.detach().reshape(1)
        self.losses.append(loss.to(torch.promote_types(loss.dtype, torch.float32)))
        self.counts.append(torch.full_like(loss, count, dtype=torch.long))

    def compute(self) -> Tensor:
        """Return the mean."""
        losses, counts = dim_zero_cat(self.losses), dim_zero_cat(self.counts)
        return (losses * counts).sum() / counts.sum()


class DicePerCase(Metric):
    """The mean of the Dice over the pairs of a case and a class that occur in the targets, a case's images pooled."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    rows: list[Tensor]

    def __init__(self, task: Task, num_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.task: Task = task
        self.num_classes = num_classes
        # of shape (1, 1 + 4 * num_classes): a case, and the counts of its images of one batch
        self.add_state("rows", [], dist_reduce_fx="cat")

    def update(self, predictions: Tensor, targets: Tensor, cases: Tensor) -> None:
        """Add the counts of a batch, case by case."""
        if not isinstance(cases, Tensor) or cases.dtype != torch.long or cases.shape != predictions.shape[:1]:
            raise DataError(
                f"Expected the third element of a batch to be the numbers of the cases, an int64 tensor of shape"
                f" {tuple(predictions.shape[:1])}, but got {_describe(cases)}. Give pairs if there are no cases."
            )
        for case in cases.unique():
            chosen = cases == case
            counts = _count(predictions[chosen], targets[chosen], self.task, self.num_classes)
            self.rows.append(torch.cat([case.view(1), counts.flatten()]).unsqueeze(0))

    def compute(self) -> Tensor:
        """Return the average."""
        rows = dim_zero_cat(self.rows)
        cases = [rows[rows[:, 0] == case, 1:].sum(dim=0) for case in rows[:, 0].unique()]
        tp, fp, tn, fn = torch.stack(cases).view(-1, 4, self.num_classes).unbind(dim=1)
        return average_ratio("dice", tp, fp, tn, fn)


def _count(predictions: Tensor, targets: Tensor, task: Task, num_classes: int) -> Tensor:
    """Return true and false positives, true and false negatives, of shape ``(4, num_classes)``."""
    if task == "binary":
        scores = binary_stat_scores(predictions, targets)
    elif task == "multilabel":
        scores = multilabel_stat_scores(predictions, targets, num_classes, average=None)
    else:
        scores = multiclass_stat_scores(predictions, targets, num_classes, average=None)
    return scores.view(num_classes, 5)[:, :4].T


def _describe(value: object) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
