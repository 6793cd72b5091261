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
from lightning_znorm.backends._memory import Statistics, add_squares, are_trusted, view_in_memory_order

Result = TypeVar("Result")

_MATRIX_ELEMENTS = 1 << 17
_MIN_ROWS = 32  # so many gradients of one size get a separate matrix, without padding


def normalize_together_(gradients: Sequence[Tensor], eps: float, scale: float, center: bool) -> list[Statistics | None]:
    """Normalize gradients of one dtype as rows of matrices.

    Args:
        gradients: Dense, real, non-empty tensors of float32, float16 or bfloat16 on the CPU.
        eps: Added to the standard deviation or root mean square.
        scale: Factor by which the gradients and the results are multiplied.
        center: Whether the mean is subtracted.

    Returns:
        Mean, standard deviation and cosine of each gradient; ``None`` for those that are left to the reference.

    """
    return _map_batches(gradients, lambda flats: _normalize_rows_(flats, eps, scale, center))


def measure_together(gradients: Sequence[Tensor]) -> list[tuple[float, float] | None]:
    """Return mean and variance of each gradient, ``None`` for those that are left to the reference."""
    return _map_batches(gradients, _measure_rows)


def _map_batches(gradients: Sequence[Tensor], function: Callable[[list[Tensor]], list[Result]]) -> list[Result | None]:
    results: list[Result | None] = [None] * len(gradients)
    flats = [(position, flat) for position, flat in enumerate(map(view_in_memory_order, gradients)) if flat is not None]
    for batch in _plan_batches(tuple([flat.numel() for _, flat in flats])):
        for number, result in zip(batch, function([flats[number][1] for number in batch]), strict=True):
            results[flats[number][0]] = result
    return results


def _center_rows(flats: list[Tensor]) -> tuple["_Workspace", Tensor, Tensor, Tensor]:
    """Copy gradients, the largest first, minus their means; return copies, means, errors of these, and variances."""
    space = _get_workspace(tuple([flat.numel() for flat in flats]), threading.get_ident())
    values, count, mask = space.values, space.count, space.mask
    if mask is not None:
        values.zero_()
    copy_all_(space.rows, flats)
    offset = values.sum(dim=1, keepdim=True).div_(count)
    values.sub_(offset)
    if mask is not None:
        values.mul_(mask)
    residual = values.sum(dim=1, keepdim=True) / count
    squares = add_squares(values).unsqueeze(1).div_(count)
    return space, offset, residual, squares - residual * residual


def _measure_rows(flats: list[Tensor]) -> list[tuple[float, float] | None]:
    space, offset, residual, variance = _center_rows(flats)
    moments = torch.cat([offset.double() + residual, variance], dim=1).tolist()
    trusted = are_trusted(residual, variance).flatten().tolist()
    return [
        (mean, square) if is_trusted or (square == 0 and not row.any()) else None
        for (mean, square), is_trusted, row in zip(moments, trusted, space.rows, strict=True)
    ]


def _normalize_rows_(flats: list[Tensor], eps: float, scale: float, center: bool) -> list[Statistics | None]:
    """Normalize flat gradients, the largest first, in two passes over float32 in the cache."""
    space, offset, residual, variance = _center_rows(flats)
    values, rows = space.values, space.rows
    mean, std = offset.double() + residual, variance.sqrt()
    length = torch.hypot(mean, std)
    factor = 1 / ((std if center else length) / scale + eps)
    if center:
        values.mul_(factor.float()).sub_(residual.mul(factor).float())
    else:
        copy_all_(rows, flats)
        values.mul_(factor.float())
    cosine = std / length if center else torch.ones_like(std)
    statistics = torch.cat([mean / scale, std / scale, cosine], dim=1).tolist()
    trusted = are_trusted(residual, variance).flatten().tolist()
    if all(trusted):
        copy_all_(flats, rows)
        return list(map(tuple, statistics))
    results: list[Statistics | None] = []
    edits: tuple[list[Tensor], list[Tensor]] = ([], [])
    for flat, row, (mean_, std_, cosine_), is_trusted in zip(flats, rows, statistics, trusted, strict=True):
        if is_trusted:
            results.append((mean_, std_, cosine_))
        else:
            results.append(_find_constant(mean_, std_, row) if center else None)
        if results[-1] is not None and len(flat) > 1:
            edits[0].append(flat)
            edits[1].append(row)
    if edits[0]:
        copy_all_(*edits)
    return results


def _find_constant(mean: float, std: float, row: Tensor) -> Statistics | None:
    """Return the statistics of a constant gradient, ``None`` for any other."""
    if std != 0 or row.any():
        return None
    return mean, 0.0, 1.0 if mean == 0 or len(row) == 1 else 0.0


@dataclass(frozen=True)
class _Workspace:
    """A matrix for gradients of certain sizes.

    Attributes:
        values: float32 matrix with a row per gradient, as wide as the largest.
        rows: A view of each row, as long as its gradient.
        count: The sizes, as a column.
        mask: 1 for an element, 0 for padding; ``None`` without padding.

    """

    values: Tensor
    rows: list[Tensor]
    count: Tensor
    mask: Tensor | None


@lru_cache(maxsize=64)
def _get_workspace(sizes: tuple[int, ...], thread: int) -> _Workspace:
    """Return a workspace of one thread for all steps, because its views cost as much as the arithmetic."""
    # the workspace of a first step in inference mode must be valid in other modes, too
    with torch.inference_mode(False), torch.device("cpu"):
        values = torch.empty(len(sizes), sizes[0], dtype=torch.float32)  # not the default dtype
        rows = [row[:size] for row, size in zip(values, sizes, strict=True)]
        count = torch.tensor(sizes, dtype=torch.float64).unsqueeze(1)
        mask = None if sizes[0] == sizes[-1] else (torch.arange(sizes[0]) < count).float()
    return _Workspace(values, rows, count, mask)


@lru_cache(maxsize=64)
def _plan_batches(sizes: tuple[int, ...]) -> list[list[int]]:
    """Group gradients for matrices, those of a frequent size separately, from the largest to the smallest."""
    return list(_iterate_batches(sizes))


def _iterate_batches(sizes: tuple[int, ...]) -> Iterator[list[int]]:
    mixed: list[int] = []
    largest = 0
    for size, group in groupby(sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True), key=sizes.__getitem__):
        positions = list(group)
        if len(positions) >= _MIN_ROWS:
            limit = max(1, _MATRIX_ELEMENTS // size)
            yield from (positions[start : start + limit] for start in range(0, len(positions), limit))
            continue
        if mixed and (len(mixed) + len(positions)) * largest > _MATRIX_ELEMENTS:
            yield mixed
            mixed = []
        largest = largest if mixed else size
        mixed += positions
    if mixed:
        yield mixed
