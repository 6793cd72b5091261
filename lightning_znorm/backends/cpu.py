"""Moments and z-score on a CPU: float32 sums of pieces, joined in float64; two passes to measure, one to edit."""

import math
from collections.abc import Iterator, Mapping, Sequence
from ctypes import c_float

import torch
from torch import Tensor

from lightning_znorm.backends import reference
from lightning_znorm.backends._memory import Statistics, are_trusted, split_into_pieces, view_in_memory_order
from lightning_znorm.backends._small import measure_together, normalize_together_
from lightning_znorm.backends._workspace import plan
from lightning_znorm.backends.moments import Moments

_CHUNK = 1 << 19  # largest number of copied elements
_SMALLEST_FACTOR = 1e-30  # in float32; the largest is its inverse


def measure(gradients: Sequence[Tensor]) -> Moments:
    """Compute :func:`lightning_znorm.backends.reference.measure`, in float32 where that is exact enough.

    Args:
        gradients: As for the reference, on the CPU.

    Returns:
        As the reference.

    Example::

        >>> moments = measure([torch.tensor([1.0, 2.0, 3.0, 6.0]), torch.empty(0)])
        >>> moments.count.tolist(), moments.mean.tolist(), moments.squares.round(decimals=5).tolist()
        ([4.0, 0.0], [3.0, 0.0], [14.0, 0.0])

    """
    arrangement = plan(gradients)
    moments = torch.zeros(2, len(gradients), dtype=torch.float64, device="cpu")  # mean and variance
    alone = [*arrangement.large]
    for batch in arrangement.batches:
        results, left = measure_together(batch, [gradients[position] for position in batch.positions])
        moments[:, batch.positions] = results
        alone += [batch.positions[number] for number in left]
    columns = {position: _measure_single(gradients[position])[:2] for position in arrangement.single}
    exactly = [position for position in arrangement.others if gradients[position].numel()]
    for position in alone:
        flat = view_in_memory_order(gradients[position])
        column = None if flat is None else _compute_moments(flat)
        if column is None:
            exactly.append(position)
        else:
            columns[position] = column
    _fill(moments, columns)
    mean, variance = moments
    count = torch.tensor([gradient.numel() for gradient in gradients], dtype=torch.float64, device="cpu")
    squares = variance * count
    for position in exactly:
        exact = reference.measure([gradients[position]])
        mean[position], squares[position] = exact.mean[0], exact.squares[0]
    return Moments(count, mean, squares)


def apply_(gradients: Sequence[Tensor], mean: Tensor, factor: Tensor) -> None:
    """Compute :func:`lightning_znorm.backends.reference.apply_`, in float32 where that is exact enough.

    A result beyond the largest number of the dtype becomes inf; the factor from a gradient's own moments gives none.

    Args:
        gradients: As for the reference, on the CPU.
        mean: As for the reference.
        factor: As for the reference.

    Example::

        >>> gradient = torch.tensor([1.0, 2.0, 3.0, 6.0])
        >>> apply_([gradient], mean=torch.tensor([3.0]).double(), factor=torch.tensor([0.5]).double())
        >>> gradient
        tensor([-1.0000, -0.5000,  0.0000,  1.5000])

    """
    edits = []
    for position, (gradient, subtracted, multiplier) in enumerate(
        zip(gradients, mean.tolist(), factor.tolist(), strict=True)
    ):
        if math.isnan(multiplier) or (multiplier == 1 and subtracted == 0):
            continue
        flat = None if gradient.dtype == torch.float64 else view_in_memory_order(gradient)
        if flat is None or not _SMALLEST_FACTOR < multiplier < 1 / _SMALLEST_FACTOR:
            edit = slice(position, position + 1)
            reference.apply_([gradient], mean[edit], factor[edit])
        else:
            edits.append((flat, subtracted, multiplier))
    _apply_(edits)


def znorm_(gradients: Sequence[Tensor], eps: float, grad_scale: Tensor | None = None, center: bool = True) -> Tensor:
    """Compute :func:`lightning_znorm.backends.reference.znorm_`, in float32 where that is exact enough.

    Sums and norms are computed in float32 over pieces of at most 128 elements and joined in float64. Their error is at
    most 1e-6 of the standard deviation, mostly 1e-7, unless the mean is larger than it; then the statistics are
    computed again for the gradient minus its mean. The reference handles the remaining cases (constants, magnitudes
    whose squares float32 cannot represent, inf and NaN, float64). Gradients of up to 262,144 elements are treated
    together.

    Args:
        gradients: Dense, real, non-empty floating-point tensors of any shape and strides, all on the CPU.
        eps: As for the reference.
        grad_scale: As for the reference.
        center: As for the reference.

    Returns:
        As the reference: float64 tensor of shape ``(3, len(gradients))``.

    Example::

        >>> gradient = torch.randn(100, 1000)
        >>> mean, std, cosine = znorm_([gradient], eps=1e-10)
        >>> bool(gradient.mean().abs() < 1e-6), round(gradient.std(correction=0).item(), 6)
        (True, 1.0)

    """
    scale = 1.0 if grad_scale is None else float(grad_scale)
    arrangement = plan(gradients)
    alone = [*arrangement.large]
    positions: list[int] = []
    tables = []
    for batch in arrangement.batches:
        members = [gradients[position] for position in batch.positions]
        results, left = normalize_together_(batch, members, eps, scale, center)
        alone += [batch.positions[number] for number in left]
        positions += batch.positions
        tables.append(results)
    if positions == [*range(len(gradients))]:
        statistics = tables[0] if len(tables) == 1 else torch.cat(tables, dim=1)
    else:
        statistics = torch.empty(3, len(gradients), dtype=torch.float64, device="cpu")
        if tables:
            statistics[:, positions] = torch.cat(tables, dim=1)
    columns = {position: _measure_single(gradients[position], scale) for position in arrangement.single}
    exactly = [*arrangement.others]
    for position in alone:
        column = _normalize_(gradients[position], eps, scale, center)
        if column is None:
            exactly.append(position)
        else:
            columns[position] = column
    _fill(statistics, columns)
    for position in exactly:
        statistics[:, position] = reference.znorm_([gradients[position]], eps, grad_scale, center)[:, 0]
    return statistics


def _fill(table: Tensor, columns: Mapping[int, tuple[float, ...]]) -> None:
    if columns:
        values = torch.tensor(list(columns.values()), dtype=torch.float64, device="cpu")
        table[:, list(columns)] = values.T


def _measure_single(gradient: Tensor, scale: float = 1.0) -> Statistics:
    """Return mean, standard deviation (NaN if it is not finite) and cosine of a gradient of one element."""
    value = gradient.item()
    return value / scale, value - value, 1.0


def _normalize_(gradient: Tensor, eps: float, scale: float, center: bool) -> Statistics | None:
    """Normalize a gradient in place; if its statistics cannot be trusted, leave it unchanged and return ``None``."""
    flat = view_in_memory_order(gradient)
    moments = None if flat is None else _compute_moments(flat)
    if flat is None or moments is None:
        return None
    mean, std = moments[0], math.sqrt(moments[1])
    length = math.hypot(mean, std)
    if not length:  # all elements are 0, and remain 0
        return 0.0, 0.0, 1.0
    _apply_([(flat, mean if center else 0.0, 1 / ((std if center else length) / scale + eps))])
    return mean / scale, std / scale, std / length if center else 1.0


def _compute_moments(flat: Tensor) -> tuple[float, float] | None:
    """Return mean and variance of a gradient, ``None`` if they cannot be trusted."""
    offset = 0.0
    residual, variance = _measure(flat)
    if variance == residual == 0 and not flat.any():
        return 0.0, 0.0
    if residual * residual > variance:
        offset = c_float(residual).value  # rounded, so that subtracting it loses no digits
        residual, variance = _measure(flat, offset)
    return (offset + residual, variance) if are_trusted(residual, variance) else None


def _measure(flat: Tensor, offset: float = 0.0) -> tuple[float, float]:
    """Return mean and variance of the elements minus the offset, from float32 sums of pieces, joined in float64."""
    total = squares = 0.0
    for chunk in _in_float32(flat, offset):
        for pieces in split_into_pieces(chunk):
            total += pieces.sum(dim=1).sum(dtype=torch.float64).item()
            norm = torch.linalg.vector_norm(torch.linalg.vector_norm(pieces, dim=1), dtype=torch.float64).item()
            squares += norm * norm
    mean = total / flat.numel()
    return mean, squares / flat.numel() - mean * mean


def _in_float32(flat: Tensor, offset: float = 0.0) -> Iterator[Tensor]:
    """Yield the elements minus the offset, in one piece if no copy is needed."""
    if flat.dtype == torch.float32 and not offset:
        yield flat
        return
    for chunk in flat.split(_CHUNK):
        yield chunk.float().sub(offset) if offset else chunk.float()


def _apply_(edits: Sequence[tuple[Tensor, float, float]]) -> None:
    """Replace each element of each flat tensor by ``(element - mean) * factor``."""
    # the mean is multiplied by the factor as rounded to float32, so that only one rounding remains; a large mean is
    # subtracted first, as far as float32 represents it
    factors = [c_float(factor).value for _, _, factor in edits]
    offsets = [
        c_float(mean).value if abs(mean) * factor > 1 else 0.0
        for (_, mean, _), factor in zip(edits, factors, strict=True)
    ]
    shifts = torch.tensor(
        [(offset - mean) * factor for (_, mean, _), offset, factor in zip(edits, offsets, factors, strict=True)],
        dtype=torch.float32,
        device="cpu",
    ).unbind()
    for (flat, _, _), offset, factor, shift in zip(edits, offsets, factors, shifts, strict=True):
        for chunk in (flat,) if flat.dtype == torch.float32 and not offset else flat.split(_CHUNK):
            values = chunk.float()
            if offset:
                values.sub_(offset)
            torch.add(shift, values, alpha=factor, out=values)
            if values is not chunk:
                chunk.copy_(values)
