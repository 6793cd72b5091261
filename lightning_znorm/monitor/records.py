"""The statistics that a GradientMonitor records in one step, as rows of the history and as metrics."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_znorm.backends import describing
from lightning_znorm.backends.gradients import group_by_device
from lightning_znorm.hosts.reporting import itemize, prefix_of, summarize

_STATISTICS = ("norm", "mean", "std", "near_zero")


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
        optimizer: Index of the optimizer.
        parameters: The parameters that had a gradient.
        values: Of shape ``(9, len(parameters))``, float64, on the CPU: norm, mean, standard deviation and share near
            zero of the raw gradients, the same of the gradients that the optimizer received, their cosines.

    """

    step: int
    optimizer: int
    parameters: tuple[ParameterInfo, ...]
    values: Tensor

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the statistics of each parameter by name."""
        names = [*_STATISTICS, *(f"received_{name}" for name in _STATISTICS), "cosine"]
        for parameter, statistics in zip(self.parameters, self.values.T.tolist(), strict=True):
            row = {"step": self.step, "optimizer": self.optimizer, "name": parameter.name, "ndim": parameter.ndim}
            yield row | dict(zip(names, statistics, strict=True))

    def metrics(self, detail: Literal["summary", "layers"], optimizers: int = 1) -> dict[str, float]:
        """Return the statistics as metrics for loggers.

        Args:
            detail: ``"summary"`` of all parameters, or all ``"layers"``.
            optimizers: Number of optimizers; if there are several, the names of a summary contain the index.

        """
        names = [parameter.name for parameter in self.parameters]
        if detail == "layers":
            *statistics, cosine = self.values.tolist()
            raw, received = (dict(zip(_STATISTICS, values, strict=True)) for values in (statistics[:4], statistics[4:]))
            return itemize("grad", names, **raw, cosine=cosine) | itemize("grad_received", names, **received)
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

    When the limit is reached, every second record is dropped, and from then on only every second is kept, and so on.
    The first and the newest record are always kept.

    Args:
        limit: Largest number of records, at least 2.

    Example::

        >>> records = ThinnedRecords(4)
        >>> for step in range(11):
        ...     records.add(GradientRecord(step, 0, (), torch.empty(9, 0)))
        >>> [record.step for record in records]
        [0, 4, 8, 10]

    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._records: list[GradientRecord] = []
        self._stride = 1
        self._added = 0

    def __iter__(self) -> Iterator[GradientRecord]:
        return iter(self._records)

    def add(self, record: GradientRecord) -> None:
        """Append a record."""
        if self._added and (self._added - 1) % self._stride:
            self._records.pop()  # kept only as the newest
        if len(self._records) == self._limit:
            self._records = self._records[::2]
            self._stride *= 2
        if self._records and self._records[-1].parameters == record.parameters:
            record = replace(record, parameters=self._records[-1].parameters)  # one tuple for all
        self._records.append(record)
        self._added += 1


def compare_gradients(
    raw: Sequence[Tensor],
    received: Sequence[Tensor | None],
    near_zero: float,
    raw_scale: Tensor | None,
    received_scale: Tensor | None,
) -> Tensor:
    """Return the statistics of raw and received gradients, with one transfer to the host per device.

    Args:
        raw: Gradients before they were transformed.
        received: The same gradients afterwards, ``None`` for removed ones, whose statistics are NaN.
        near_zero: Largest absolute value of an element that counts as near zero.
        raw_scale: The GradScaler's scale by which ``raw`` is still multiplied, ``None`` for none.
        received_scale: The same for ``received``.

    Returns:
        A tensor as in :attr:`GradientRecord.values`.

    """
    values = torch.empty(9, len(raw), dtype=torch.float64, device="cpu")
    for index, before in group_by_device(raw).values():
        after = [
            torch.full_like(gradient, torch.nan) if edited is None else edited
            for gradient, edited in zip(before, (received[i] for i in index), strict=True)
        ]
        statistics = describing.compare_gradients(before, after, near_zero, raw_scale, received_scale)
        values[:, list(index)] = statistics.cpu()
    return values
