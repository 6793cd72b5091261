"""What a GradientMonitor has seen in one step, and the forms in which it is handed on."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_znorm.backends import reference
from lightning_znorm.functional import group_by_device

_FIGURES = ("norm", "mean", "std", "near_zero")


@dataclass(frozen=True)
class ParameterInfo:
    """Name, place in the module, number of dimensions and of elements of a parameter."""

    name: str
    position: int
    ndim: int
    numel: int


@dataclass(frozen=True)
class GradientRecord:
    """One step of one optimizer.

    Attributes:
        step: The step as loggers count it.
        optimizer: Number of the optimizer.
        parameters: The parameters that had a gradient.
        values: Of shape ``(9, len(parameters))``, float64, on the CPU: norm, mean, standard deviation and share near
            zero of the raw gradients, the same of the gradients that the optimizer received, their cosines.

    """

    step: int
    optimizer: int
    parameters: tuple[ParameterInfo, ...]
    values: Tensor

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the figures of each parameter by their names."""
        names = [*_FIGURES, *(f"received_{figure}" for figure in _FIGURES), "cosine"]
        for parameter, figures in zip(self.parameters, self.values.T.tolist(), strict=True):
            row = {"step": self.step, "optimizer": self.optimizer, "name": parameter.name, "ndim": parameter.ndim}
            yield row | dict(zip(names, figures, strict=True))

    def metrics(self, detail: Literal["summary", "layers"], suffix: str = "") -> dict[str, float]:
        """Return the figures as loggers take them.

        Args:
            detail: All parameters together, or each of them.
            suffix: Added to the prefix of a summary, to tell optimizers apart.

        """
        return self._summary(suffix) if detail == "summary" else self._layers()

    def _summary(self, suffix: str) -> dict[str, float]:
        metrics = {}
        numel = torch.tensor([parameter.numel for parameter in self.parameters], dtype=torch.float64, device="cpu")
        for prefix, values in ((f"grad{suffix}", self.values[:4]), (f"grad_received{suffix}", self.values[4:8])):
            norm, _, std, near_zero = values
            std = std[numel > 1] if (numel > 1).any() else std
            figures = torch.stack([std.min(), std.median(), std.max(), (near_zero * numel).sum() / numel.sum()])
            metrics[f"{prefix}/norm"] = math.hypot(*norm.tolist())
            names = ("std_min", "std_median", "std_max", "near_zero")
            metrics.update({f"{prefix}/{name}": value for name, value in zip(names, figures.tolist(), strict=True)})
        cosine = self.values[8]
        mean, smallest = torch.stack([cosine.mean(), cosine.min()]).tolist()
        return metrics | {f"grad{suffix}/cosine_mean": mean, f"grad{suffix}/cosine_min": smallest}

    def _layers(self) -> dict[str, float]:
        keys = [f"grad/{figure}" for figure in _FIGURES] + [f"grad_received/{figure}" for figure in _FIGURES]
        return {
            f"{key}/{parameter.name}": value
            for key, values in zip([*keys, "grad/cosine"], self.values.tolist(), strict=True)
            for parameter, value in zip(self.parameters, values, strict=True)
        }


class ThinnedRecords:
    """Records of one optimizer, at most ``limit`` of them, spread evenly over the whole training.

    When they are full, every second one is dropped, and of those to come only every second is kept, and so on. The
    first record is always kept, and so is the newest.

    Args:
        limit: At least 2.

    Example::

        >>> records = ThinnedRecords(4)
        >>> for step in range(11):
        ...     records.add(GradientRecord(step, 0, (), torch.empty(9, 0)))
        >>> [record.step for record in records]
        [0, 4, 8, 10]

    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: list[GradientRecord] = []
        self._stride = 1
        self._added = 0

    def __iter__(self) -> Iterator[GradientRecord]:
        return iter(self._kept)

    def add(self, record: GradientRecord) -> None:
        """Append a record."""
        if self._added and (self._added - 1) % self._stride:
            self._kept.pop()  # which was there only as the newest
        if len(self._kept) == self._limit:
            self._kept = self._kept[::2]
            self._stride *= 2
        if self._kept and self._kept[-1].parameters == record.parameters:
            record = replace(record, parameters=self._kept[-1].parameters)  # one tuple for all
        self._kept.append(record)
        self._added += 1


def compare_gradients(
    raw: Sequence[Tensor],
    received: Sequence[Tensor | None],
    near_zero: float,
    raw_scale: Tensor | None,
    received_scale: Tensor | None,
) -> Tensor:
    """Return the figures of gradients before and after what is done to them, with one transfer to the host per device.

    Args:
        raw: Gradients as they were.
        received: The same gradients as they are, ``None`` for those that are gone, whose figures are NaN.
        near_zero: Largest absolute value of an element that counts as near zero.
        raw_scale: The GradScaler's scale by which ``raw`` is still multiplied, ``None`` for none.
        received_scale: The same of ``received``.

    Returns:
        What :attr:`GradientRecord.values` holds.

    """
    values = torch.empty(9, len(raw), dtype=torch.float64, device="cpu")
    for index, before in group_by_device(raw).values():
        found = (received[i] for i in index)
        after = [
            torch.full_like(old, torch.nan) if new is None else new for old, new in zip(before, found, strict=True)
        ]
        figures = torch.cat(
            [
                reference.describe(before, near_zero, raw_scale),
                reference.describe(after, near_zero, received_scale),
                reference.cosines(before, after)[None],
            ]
        )
        values[:, list(index)] = figures.cpu()
    return values
