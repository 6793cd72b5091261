"""The z-score of many small gradients on a CPU at once: a call of PyTorch costs more than they do."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

import torch
from torch import Tensor

from lightning_znorm.backends._memory import Figures, add_squares, are_trusted, in_order_of_memory

_ELEMENTS = 1 << 17  # of a matrix
_MANY = 32  # gradients of one size are worth a matrix of their own, without padding


def normalize_together_(gradients: Sequence[Tensor], eps: float, scale: float) -> list[Figures | None]:
    """Normalize gradients of one dtype as rows of matrices.

    Args:
        gradients: Dense, real, non-empty tensors of float32, float16 or bfloat16 on the CPU.
        eps: Added to the standard deviation.
        scale: By which the gradients and the results are multiplied.

    Returns:
        Of each gradient mean, standard deviation and cosine; ``None`` of those that are left to the reference.

    """
    figures: list[Figures | None] = [None] * len(gradients)
    found = [(position, flat) for position, flat in enumerate(map(in_order_of_memory, gradients)) if flat is not None]
    for batch in _batches(tuple([flat.numel() for _, flat in found])):
        flats = [found[number][1] for number in batch]
        for number, these in zip(batch, _normalize_rows_(flats, eps, scale), strict=True):
            figures[found[number][0]] = these
    return figures


def _normalize_rows_(flats: list[Tensor], eps: float, scale: float) -> list[Figures | None]:
    """Normalize flat gradients, the largest first; in two passes over float32 that a cache holds."""
    space = _workspace(tuple([flat.numel() for flat in flats]), threading.get_ident())
    values, rows, count, inside = space.values, space.rows, space.count, space.inside
    if inside is not None:
        values.zero_()
    torch._foreach_copy_(rows, flats)
    offset = values.sum(dim=1, keepdim=True).div_(count)
    values.sub_(offset)
    if inside is not None:
        values.mul_(inside)
    rest = values.sum(dim=1, keepdim=True) / count
    squares = add_squares(values).unsqueeze(1).div_(count)
    mean, variance = offset.double() + rest, squares - rest * rest
    std = variance.sqrt()
    factor = 1 / (std / scale + eps)
    values.mul_(factor.float()).sub_(rest.mul(factor).float())
    figures = torch.cat([mean / scale, std / scale, std / torch.hypot(mean, std)], dim=1).tolist()
    trusted = are_trusted(rest, variance).flatten().tolist()
    if all(trusted):
        torch._foreach_copy_(flats, rows)
        return list(map(tuple, figures))
    found: list[Figures | None] = []
    edits: tuple[list[Tensor], list[Tensor]] = ([], [])
    for flat, row, (mean_, std_, cosine), is_trusted in zip(flats, rows, figures, trusted, strict=True):
        found.append((mean_, std_, cosine) if is_trusted else _judge_constant(mean_, std_, row))
        if found[-1] is not None and len(flat) > 1:
            edits[0].append(flat)
            edits[1].append(row)
    if edits[0]:
        torch._foreach_copy_(*edits)
    return found


def _judge_constant(mean: float, std: float, row: Tensor) -> Figures | None:
    """Return the figures of a gradient whose deviations from its mean are all exactly 0, ``None`` of any other."""
    if std != 0 or row.any():
        return None
    return mean, 0.0, 1.0 if mean == 0 or len(row) == 1 else 0.0


@dataclass(frozen=True)
class _Workspace:
    """Where gradients of certain sizes lie side by side.

    Attributes:
        values: float32 matrix with a row per gradient, as wide as the largest.
        rows: A view of each row, as long as its gradient.
        count: The sizes, as a column.
        inside: 1 where there is an element, 0 where there is padding; ``None`` where there is none.

    """

    values: Tensor
    rows: list[Tensor]
    count: Tensor
    inside: Tensor | None


@lru_cache(maxsize=64)
def _workspace(sizes: tuple[int, ...], thread: int) -> _Workspace:
    """Return a workspace that is used in one thread, again in every step: views cost as much as the arithmetic."""
    # whatever the mode of the first step is, the workspace serves in every other
    with torch.inference_mode(False), torch.device("cpu"):
        values = torch.empty(len(sizes), sizes[0], dtype=torch.float32)  # whatever the default is in that mode
        rows = [row[:size] for row, size in zip(values, sizes, strict=True)]
        count = torch.tensor(sizes, dtype=torch.float64).unsqueeze(1)
        inside = None if sizes[0] == sizes[-1] else (torch.arange(sizes[0]) < count).float()
    return _Workspace(values, rows, count, inside)


@lru_cache(maxsize=64)
def _batches(sizes: tuple[int, ...]) -> list[list[int]]:
    """Group gradients of one size where there are many, and the others, all from the largest to the smallest."""
    return list(_iterate_batches(sizes))


def _iterate_batches(sizes: tuple[int, ...]) -> Iterator[list[int]]:
    mixed: list[int] = []
    largest = 0
    for size, group in groupby(sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True), key=sizes.__getitem__):
        alike = list(group)
        if len(alike) >= _MANY:
            limit = max(1, _ELEMENTS // size)
            yield from (alike[start : start + limit] for start in range(0, len(alike), limit))
            continue
        if mixed and (len(mixed) + len(alike)) * largest > _ELEMENTS:
            yield mixed
            mixed = []
        largest = largest if mixed else size
        mixed += alike
    if mixed:
        yield mixed
