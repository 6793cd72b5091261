"""Moments and z-score on a CPU: float32 sums of tiles, joined in float64; two passes to measure, one to edit."""

import math
from collections.abc import Iterable, Iterator, Sequence
from ctypes import c_float
from functools import lru_cache
from itertools import islice

import torch
from torch import Tensor

from lightning_znorm.backends import reference
from lightning_znorm.backends._memory import PIECE, Statistics, are_trusted, choose_width, view_in_memory_order
from lightning_znorm.backends._small import measure_together, normalize_together_
from lightning_znorm.backends.moments import Moments

_SMALL = 4096  # gradients of at most so many elements are normalized together
_CACHED = 1 << 21  # elements that are measured before they are normalized, while they may still be in the cache
_TILE = 8192  # elements that are summed in float32
_JOINED = 128  # pieces that PyTorch joins; Python joins the results
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
    sizes = [gradient.numel() for gradient in gradients]
    small, large = _split_by_size(gradients, sizes)
    moments: list[tuple[float, float] | None] = [None if size else (0.0, 0.0) for size in sizes]
    for batch in small:
        results = measure_together([gradients[position] for position in batch])
        for position, result in zip(batch, results, strict=True):
            moments[position] = result
    flats = [(position, flat) for position in large if (flat := view_in_memory_order(gradients[position])) is not None]
    sums = _sum_chunks([_in_float32(flat) for _, flat in flats])
    for (position, flat), (total, squares) in zip(flats, sums, strict=True):
        moments[position] = _compute_moments(flat, total, squares)
    rows = []
    for gradient, size, moment in zip(gradients, sizes, moments, strict=True):
        if moment is None:
            exact = reference.measure([gradient])
            rows.append((size, exact.mean.item(), exact.squares.item()))
        else:
            mean, variance = moment
            rows.append((size, mean, variance * size))
    return Moments(*torch.tensor(rows, dtype=torch.float64, device="cpu").T.contiguous())


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

    Sums are computed in float32 over tiles of 8,192 elements, norms over pieces of 128, and both are joined in float64.
    Their error is at most 1e-6 of the standard deviation, mostly 1e-7, unless the mean is larger than it; then the
    statistics are computed again for the gradient minus its mean. The reference handles the remaining cases (constants,
    magnitudes whose squares float32 cannot represent, inf and NaN, strides that leave gaps, float64). Small gradients
    are normalized together.

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
    statistics: list[Statistics | None] = [None] * len(gradients)
    sizes = [gradient.numel() for gradient in gradients]
    small, large = _split_by_size(gradients, sizes)
    batches = [(batch, normalize_together_) for batch in small]
    batches += [(batch, _normalize_) for batch in _batch_by_cache(large, sizes)]
    for batch, normalize_ in batches:
        results = normalize_([gradients[position] for position in batch], eps, scale, center)
        for position, result in zip(batch, results, strict=True):
            statistics[position] = result
    return torch.tensor(
        [
            column or reference.znorm_([gradient], eps, grad_scale, center).flatten().tolist()
            for column, gradient in zip(statistics, gradients, strict=True)
        ],
        dtype=torch.float64,
        device="cpu",
    ).T


def _split_by_size(gradients: Sequence[Tensor], sizes: Sequence[int]) -> tuple[Iterable[list[int]], list[int]]:
    """Return the positions of small gradients, by dtype, and of large ones, without empty and float64 gradients."""
    small: dict[torch.dtype, list[int]] = {}
    large: list[int] = []
    for position, (gradient, size) in enumerate(zip(gradients, sizes, strict=True)):
        if gradient.dtype == torch.float64 or not size:
            continue
        if size <= _SMALL:
            small.setdefault(gradient.dtype, []).append(position)
        else:
            large.append(position)
    return small.values(), large


def _normalize_(gradients: Sequence[Tensor], eps: float, scale: float, center: bool) -> list[Statistics | None]:
    """Normalize gradients in place; those whose statistics cannot be trusted are left unchanged, with ``None``."""
    statistics: list[Statistics | None] = [None] * len(gradients)
    flats = [(n, flat) for n, flat in enumerate(map(view_in_memory_order, gradients)) if flat is not None]
    sums = _sum_chunks([_in_float32(flat) for _, flat in flats])
    edits = []
    for (position, flat), (total, squares) in zip(flats, sums, strict=True):
        moments = _compute_moments(flat, total, squares)
        if moments is None:
            continue
        mean, std = moments[0], math.sqrt(moments[1])
        length = math.hypot(mean, std)
        if not length:  # all elements are 0, and remain 0
            statistics[position] = (0.0, 0.0, 1.0)
            continue
        statistics[position] = (mean / scale, std / scale, std / length if center else 1.0)
        edits.append((flat, mean if center else 0.0, 1 / ((std if center else length) / scale + eps)))
    _apply_(edits)
    return statistics


def _compute_moments(flat: Tensor, total: float, squares: float) -> tuple[float, float] | None:
    """Return mean and variance of a gradient, ``None`` if they cannot be trusted."""
    if squares == 0 and not flat.any():
        return 0.0, 0.0
    count, offset = flat.numel(), 0.0
    residual = total / count
    variance = squares / count - residual * residual
    if residual * residual > variance:
        offset = c_float(residual).value  # rounded, so that subtracting it loses no digits
        ((total, squares),) = _sum_chunks([_in_float32(flat, offset)])
        residual = total / count
        variance = squares / count - residual * residual
    return (offset + residual, variance) if are_trusted(residual, variance) else None


def _sum_chunks(gradients: Iterable[Iterable[Tensor]]) -> list[tuple[float, float]]:
    """Return the sum and the sum of squares of each gradient, an iterable of flat chunks of float32."""
    sums: list[Tensor] = []
    norms: list[Tensor] = []
    counts = []
    for chunks in gradients:
        tiles = pieces = 0
        for chunk in chunks:
            for matrix in _split(chunk, _TILE):
                sums.append(matrix.sum(dim=1))
                tiles += len(matrix)
            for matrix in _split(chunk, PIECE):
                norms.append(torch.linalg.vector_norm(matrix, dim=1))
                pieces += len(matrix)
        if pieces % _JOINED:
            norms.append(_zeros(_JOINED - pieces % _JOINED))
        counts.append((tiles, math.ceil(pieces / _JOINED)))
    if not counts:
        return []
    total = iter(torch.cat(sums).tolist())
    norm = iter(torch.linalg.vector_norm(torch.cat(norms).view(-1, _JOINED), dim=1, dtype=torch.float64).tolist())
    return [
        (_sum_exactly(islice(total, tiles)), _sum_exactly(value * value for value in islice(norm, n)))
        for tiles, n in counts
    ]


@lru_cache(maxsize=_JOINED)
def _zeros(count: int) -> Tensor:
    """Return zeros that are valid in every mode."""
    with torch.inference_mode(False):
        return torch.zeros(count, dtype=torch.float32, device="cpu")


def _sum_exactly(values: Iterable[float]) -> float:
    """Return the sum, rounded once; NaN if it overflows or if there are infs of both signs."""
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):
        return math.nan


def _split(flat: Tensor, max_width: int) -> list[Tensor]:
    """Return the elements as one or two matrices with rows of at most ``max_width`` elements."""
    count = flat.numel()
    width = choose_width(count, max_width)
    if count % width == 0:
        return [flat.view(-1, width)]
    stop = count - count % width
    return [flat[:stop].view(-1, width), flat[stop:].view(1, -1)]


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


def _batch_by_cache(positions: Iterable[int], sizes: Sequence[int]) -> Iterator[list[int]]:
    batch: list[int] = []
    elements = 0
    for position in positions:
        if batch and elements + sizes[position] > _CACHED:
            yield batch
            batch, elements = [], 0
        batch.append(position)
        elements += sizes[position]
    if batch:
        yield batch
