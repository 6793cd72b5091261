"""Moments and z-score of many small gradients on a CPU at once: a call of PyTorch costs more than they do."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import TypeVar

import torch
from torch import Tensor

from lightning_znorm._torch import copy_all_
from lightning_znorm.backends._memory import Figures, add_squares, are_trusted, in_order_of_memory

Result = TypeVar("Result")

_ELEMENTS = 1 << 17  # of a matrix
_MANY = 32  # gradients of one size are worth a matrix of their own, without padding


def normalize_together_(gradients: Sequence[Tensor], eps: float, scale: float, center: bool) -> list[Figures | None]:
    """Normalize gradients of one dtype as rows of matrices.

    Args:
        gradients: Dense, real, non-empty tensors of float32, float16 or bfloat16 on the CPU.
        eps: Added to the standard deviation or root mean square.
        scale: By which the gradients and the results are multiplied.
        center: Whether the mean is subtracted.

    Returns:
        Of each gradient mean, standard deviation and cosine; ``None`` of those that are left to the reference.

    """
    return _by_batch(gradients, lambda flats: _normalize_rows_(flats, eps, scale, center))


def measure_together(gradients: Sequence[Tensor]) -> list[tuple[float, float] | None]:
    """Return mean and variance of each gradient, ``None`` of those that are left to the reference."""
    return _by_batch(gradients, _measure_rows)


def _by_batch(gradients: Sequence[Tensor], of_batch: Callable[[list[Tensor]], list[Result]]) -> list[Result | None]:
    results: list[Result | None] = [None] * len(gradients)
    found = [(position, flat) for position, flat in enumerate(map(in_order_of_memory, gradients)) if flat is not None]
    for batch in _batches(tuple([flat.numel() for _, flat in found])):
        for number, result in zip(batch, of_batch([found[number][1] for number in batch]), strict=True):
            results[found[number][0]] = result
    return results


def _center_rows(flats: list[Tensor]) -> tuple["_Workspace", Tensor, Tensor, Tensor]:
    """Copy gradients, the largest first, less their means; return also means, what these lack, and variances."""
    space = _workspace(tuple([flat.numel() for flat in flats]), threading.get_ident())
    values, count, inside = space.values, space.count, space.inside
    if inside is not None:
        values.zero_()
    copy_all_(space.rows, flats)
    offset = values.sum(dim=1, keepdim=True).div_(count)
    values.sub_(offset)
    if inside is not None:
        values.mul_(inside)
    rest = values.sum(dim=1, keepdim=True) / count
    squares = add_squares(values).unsqueeze(1).div_(count)
    return space, offset, rest, squares - rest * rest


def _measure_rows(flats: list[Tensor]) -> list[tuple[float, float] | None]:
    space, offset, rest, variance = _center_rows(flats)
    moments = torch.cat([offset.double() + rest, variance], dim=1).tolist()
    trusted = are_trusted(rest, variance).flatten().tolist()
    return [
        (mean, square) if is_trusted or (square == 0 and not row.any()) else None
        for (mean, square), is_trusted, row in zip(moments, trusted, space.rows, strict=True)
    ]


def _normalize_rows_(flats: list[Tensor], eps: float, scale: float, center: bool) -> list[Figures | None]:
    """Normalize flat gradients, the largest first; in two passes over float32 that a cache holds."""
    space, offset, rest, variance = _center_rows(flats)
    values, rows = space.values, space.rows
    mean, std = offset.double() + rest, variance.sqrt()
    length = torch.hypot(mean, std)
    factor = 1 / ((std if center else length) / scale + eps)
    if center:
        values.mul_(factor.float()).sub_(rest.mul(factor).float())
    else:
        copy_all_(rows, flats)
        values.mul_(factor.float())
    cosine = std / length if center else torch.ones_like(std)
    figures = torch.cat([mean / scale, std / scale, cosine], dim=1).tolist()
    trusted = are_trusted(rest, variance).flatten().tolist()
    if all(trusted):
        copy_all_(flats, rows)
        return list(map(tuple, figures))
    found: list[Figures | None] = []
    edits: tuple[list[Tensor], list[Tensor]] = ([], [])
    for flat, row, (mean_, std_, cosine_), is_trusted in zip(flats, rows, figures, trusted, strict=True):
        if is_trusted:
            found.append((mean_, std_, cosine_))
        else:
            found.append(_judge_constant(mean_, std_, row) if center else None)
        if found[-1] is not None and len(flat) > 1:
            edits[0].append(flat)
            edits[1].append(row)
    if edits[0]:
        copy_all_(*edits)
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
