"""Gradient centralization on a CPU, in float32 where that is exact enough."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_znorm._torch import copy_all_
from lightning_znorm.backends import cpu, reference
from lightning_znorm.backends._memory import (
    LARGEST_VARIANCE,
    SMALLEST_VARIANCE,
    Statistics,
    add_squares,
    view_in_memory_order,
)

_SMALL = 65_536  # elements: a call of PyTorch costs more than the arithmetic of fewer, even in float64
_TOGETHER = 262_144  # elements
_SMALL_DEVIATIONS = 1e-5  # relative to the mean of a row: for smaller ones, the rounding of the mean matters


def centralize_(gradients: Sequence[Tensor], grad_scale: Tensor | None = None) -> Tensor:
    """Compute :func:`lightning_znorm.backends.reference.centralize_` in three passes over float32.

    Small gradients with rows of one length are centralized together, in float64. Of larger ones, rows that deviate
    little from their mean are centralized again by the reference, since a constant added to a row does not change the
    result. The reference also handles gradients of float64, those whose strides leave gaps or do not begin with the
    rows, those with inf or NaN, and those with means so large that deviations might overflow.

    Args:
        gradients: Dense, real, non-empty floating-point tensors of any shape and strides, all on the CPU.
        grad_scale: As for the reference.

    Returns:
        As the reference: float64 tensor of shape ``(3, len(gradients))``.

    Example::

        >>> gradient = torch.randn(100, 1000)
        >>> mean, std, cosine = centralize_([gradient])
        >>> bool((gradient.mean(dim=1).abs() < 1e-6).all())
        True

    """
    scale = 1.0 if grad_scale is None else float(grad_scale)
    stats = torch.ones(3, len(gradients), dtype=torch.float64, device="cpu")
    unchanged = [position for position, gradient in enumerate(gradients) if not _has_rows(gradient)]
    if unchanged:
        moments = cpu.measure([gradients[position] for position in unchanged])
        stats[:2, unchanged] = torch.stack([moments.mean, (moments.squares / moments.count).sqrt()]) / scale
    for positions in _group(gradients):
        rows = [gradients[position] for position in positions]
        columns = _centralize_together_(rows) if len(rows) > 1 else None
        if columns is None:
            columns = torch.tensor([_centralize_alone_(row) for row in rows], dtype=torch.float64, device="cpu").T
        columns[:2] /= scale
        stats[:, positions] = columns
    return stats


def _group(gradients: Sequence[Tensor]) -> Iterator[list[int]]:
    """Yield the numbers of the gradients with rows, those together that are small and have rows of one length."""
    groups: dict[object, list[int]] = {}
    sizes: dict[object, int] = {}
    for number, gradient in enumerate(gradients):
        if not _has_rows(gradient):
            continue
        if gradient.numel() > _SMALL or gradient.dtype == torch.float64 or _view_rows(gradient) is None:
            yield [number]
            continue
        key = (gradient.dtype, gradient.numel() // len(gradient))
        groups.setdefault(key, []).append(number)
        sizes[key] = sizes.get(key, 0) + gradient.numel()
        if sizes[key] > _TOGETHER:
            del sizes[key]
            yield groups.pop(key)
    yield from groups.values()


def _centralize_together_(gradients: Sequence[Tensor]) -> Tensor | None:
    """Centralize in float64 what has rows of one length, and return the columns; ``None`` if it might overflow."""
    views = [view for gradient in gradients if (view := _view_rows(gradient)) is not None]
    values = torch.cat(views).double()
    mean = values.mean(dim=1, keepdim=True)
    largest = torch.finfo(views[0].dtype).max / 2
    if not max(abs(end) for end in map(float, values.aminmax())) < largest:  # also for NaN
        return None
    values -= mean
    copy_all_(views, values.to(views[0].dtype).split([len(view) for view in views]))
    count = np.array([len(view) for view in views])
    starts = count.cumsum() - count
    means, squares = mean.flatten().numpy(), torch.linalg.vector_norm(values, dim=1).square_().numpy()
    center = np.add.reduceat(means, starts) / count
    after = np.add.reduceat(squares, starts)
    between = np.add.reduceat(means * means, starts) * values.shape[1]
    spread = np.add.reduceat((means - center.repeat(count)) ** 2, starts) / count
    std = np.sqrt(after / (count * values.shape[1]) + spread)
    whole = after + between
    cosine = np.sqrt(np.divide(after, whole, out=np.ones_like(whole), where=whole > 0))
    return torch.from_numpy(np.stack([center, std, cosine]))


def _centralize_alone_(gradient: Tensor) -> Sequence[float]:
    statistics = None if gradient.dtype == torch.float64 else _centralize_one_(gradient)
    return reference.centralize_([gradient]).flatten().tolist() if statistics is None else statistics


def _centralize_one_(gradient: Tensor) -> Statistics | None:
    rows = _view_rows(gradient)
    if rows is None:
        return None
    values = rows.float()
    means = values.sum(dim=1).double().div_(values.shape[1])
    # subtracting less than half the distance between the largest two numbers cannot give inf
    if not means.abs().max() < torch.finfo(gradient.dtype).max * torch.finfo(gradient.dtype).eps / 4:
        return None
    offsets = means.float()
    values.sub_(offsets.unsqueeze(1))
    if means.square().max() > values[0].square().mean():  # the rounding of the mean might matter
        residuals = values.sum(dim=1).double().div_(values.shape[1])
        values.sub_(residuals.float().unsqueeze(1))
        means = offsets.double() + residuals
    squares = add_squares(values)
    if not SMALLEST_VARIANCE < squares.sum().item() / values.numel() < LARGEST_VARIANCE:
        squares = torch.linalg.vector_norm(values, dim=1, dtype=torch.float64).square_()
    is_nearly_constant = squares <= _SMALL_DEVIATIONS**2 * values.shape[1] * means.square()
    if is_nearly_constant.any():
        recentered = values[is_nearly_constant]
        means[is_nearly_constant] = offsets[is_nearly_constant].double() + recentered.double().mean(dim=1)
        reference.centralize_([recentered])
        values[is_nearly_constant] = recentered
        squares[is_nearly_constant] = torch.linalg.vector_norm(recentered, dim=1, dtype=torch.float64).square_()
    if values.data_ptr() != rows.data_ptr():
        rows.copy_(values)
    after = math.sqrt(squares.sum().item())
    between = torch.linalg.vector_norm(means).item() * math.sqrt(values.shape[1])
    before = math.hypot(after, between)  # the subtracted means are orthogonal to the result
    std = math.hypot(after / math.sqrt(values.numel()), means.std(correction=0).item())
    return means.mean().item(), std, after / before if before else 1.0


def _has_rows(gradient: Tensor) -> bool:
    """Return whether the gradient has rows of several elements."""
    return gradient.ndim > 1 and gradient.numel() > len(gradient)


def _view_rows(gradient: Tensor) -> Tensor | None:
    """Return a view with a row per index of dimension 0, ``None`` if the strides allow none."""
    flat = view_in_memory_order(gradient)
    is_outermost = gradient.stride(0) == max(gradient.stride()) or len(gradient) == 1
    return flat.view(len(gradient), -1) if flat is not None and is_outermost else None
