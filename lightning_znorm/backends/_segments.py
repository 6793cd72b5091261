"""Sums of the parts of each of many wholes, in an order that depends on their numbers alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_WIDTHS = (128, 32, 8)  # numbers that are summed at once


@dataclass(frozen=True)
class Segments:
    """Which parts make up which whole.

    Attributes:
        owner: The whole of each part.
        count: Number of elements of each part, in a floating-point type.
        first: The first part of each whole.
        total: Number of elements of each whole.
        levels: Matrices of positions: each row lists numbers whose sum is an entry of the next level, filled up with
            the position of a zero.

    """

    owner: Tensor
    count: Tensor
    first: Tensor
    total: Tensor
    levels: Sequence[Tensor]

    def add(self, values: Tensor) -> Tensor:
        """Return the sums of each row of a matrix, one column per whole; it has a last column of zeros."""
        for level in self.levels:
            values = values.index_select(1, level.view(-1)).view(len(values), *level.shape).sum(dim=2)
        return values

    def of_first(self, values: Tensor) -> Tensor:
        """Return the columns of the first part of each whole."""
        return values.index_select(1, self.first)

    def spread(self, values: Tensor) -> Tensor:
        """Return a column per part from one per whole."""
        return values.index_select(values.ndim - 1, self.owner)


def tabulate(owner: Tensor, count: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Return the fields of :class:`Segments` as integers of one type, those of floating-point types by their bits.

    Args:
        owner: The whole of each part, on the CPU; each whole has a part.
        count: Number of elements of each part.
        dtype: Floating-point type of the counts.

    """
    order = owner.argsort(stable=True)
    members = owner.bincount()
    total = torch.zeros_like(members).index_add_(0, owner, count)
    first = order[members.cumsum(0) - members]
    integer = torch.int64 if dtype == torch.float64 else torch.int32
    fields = [owner, count.to(dtype).view(integer), first, total.to(dtype).view(integer)]
    # not much wider than most wholes need
    widths = [width for width in _WIDTHS if width <= 2 * len(owner) / len(members)] or [_WIDTHS[-1]]
    zero, width, is_last = len(order), min(widths[0], int(members.max())), False
    while not is_last:
        owners = torch.arange(len(members)).repeat_interleave(members)
        rows = (members + width - 1) // width
        is_last = int(rows.max()) == 1
        lists = torch.full((int(rows.sum()) + (not is_last), width), zero)  # the last is a zero for the next level
        rank = torch.arange(len(order)) - (members.cumsum(0) - members)[owners]
        lists.view(-1)[(rows.cumsum(0) - rows)[owners] * width + rank] = order
        fields.append(lists)
        members, zero = rows, int(rows.sum())
        order = torch.arange(zero)
    return [field.to(integer) for field in fields]


def from_fields(fields: Sequence[Tensor], dtype: torch.dtype) -> Segments:
    """Return the segments whose fields :func:`tabulate` returned, on any device."""
    owner, count, first, total, *levels = fields
    return Segments(owner, count.view(dtype), first, total.view(dtype), levels)
