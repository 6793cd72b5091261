"""What a GradientMonitor has seen in one step, and the forms in which it is handed on."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_znorm.backends import reference
from lightning_znorm.backends.gradients import group_by_device
from lightning_znorm.hosts.reporting import per_layer, prefix_of, summarize

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

    def metrics(self, detail: Literal["summary", "layers"], optimizers: int = 1) -> dict[str, float]:
        """Return the figures as loggers take them.

        Args:
            detail: All parameters together, or each of them.
            optimizers: How many there are; the names of a summary tell them apart.

        """
        names = [parameter.name for parameter in self.parameters]
        if detail == "layers":
            *figures, cosine = self.values.tolist()
            raw, received = (dict(zip(_FIGURES, values, strict=True)) for values in (figures[:4], figures[4:]))
            return per_layer("grad", names, **raw, cosine=cosine) | per_layer("grad_received", names, **received)
        return self._summarize("grad", self.values[:4], optimizers, self.values[8]) | self._summarize(
            "grad_received", self.values[4:8], optimizers
        )

    def _summarize(
        self, prefix: str, values: Tensor, optimizers: int, cosine: Tensor | None = None
    ) -> dict[str, float]:
        norm, mean, std, near_zero = values
        numel = [parameter.numel for parameter in self.parameters]
        weights = torch.tensor(numel, dtype=torch.float64, device="cpu")
        prefix = prefix_of(prefix, self.optimizer, optimizers)
        return summarize(prefix, mean, std, numel, cosine) | {
            f"{prefix}/norm": math.hypot(*norm.tolist()),
            f"{prefix}/near_zero": ((near_zero * weights).sum() / weights.sum()).item(),
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
