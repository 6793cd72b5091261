"""Moments and z-score on a CPU: float32 tiles joined in float64, in two reads and one pass of reading and writing."""

import math
from collections.abc import Iterable, Iterator, Sequence
from ctypes import c_float
from functools import lru_cache
from itertools import islice

import torch
from torch import Tensor

from lightning_znorm.backends import reference
from lightning_znorm.backends._memory import PIECE, Figures, are_trusted, choose_width, in_order_of_memory
from lightning_znorm.backends._small import measure_together, normalize_together_
from lightning_znorm.backends.moments import Moments

_SMALL = 4096  # gradients of at most so many elements are taken together
_CACHED = 1 << 21  # elements that are measured before they are normalized, while a cache may still have them
_TILE = 8192  # elements that are summed in float32
_JOINED = 128  # pieces that PyTorch joins; Python joins the rest
_CHUNK = 1 << 19  # elements of which there may be a copy
_SMALLEST_FACTOR = 1e-30  # and one over the largest, in float32


def measure(gradients: Sequence[Tensor]) -> Moments:
    """Do what :func:`lightning_znorm.backends.reference.measure` does, in float32 where that is enough.

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
    small, large = _sort(gradients, sizes)
    moments: list[tuple[float, float] | None] = [None if size else (0.0, 0.0) for size in sizes]
    for batch in small:
        found = measure_together([gradients[position] for position in batch])
        for position, result in zip(batch, found, strict=True):
            moments[position] = result
    flats = [(position, flat) for position in large if (flat := in_order_of_memory(gradients[position])) is not None]
    sums = _add_up([_in_float32(flat) for _, flat in flats])
    for (position, flat), (total, squares) in zip(flats, sums, strict=True):
        moments[position] = _evaluate(flat, total, squares)
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
    """Do what :func:`lightning_znorm.backends.reference.apply_` does, in float32 where that is enough.

    A result beyond the largest number of the dtype, which the factor of a gradient's own moments never gives, becomes
    inf.

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
        flat = None if gradient.dtype == torch.float64 else in_order_of_memory(gradient)
        if flat is None or not _SMALLEST_FACTOR < multiplier < 1 / _SMALLEST_FACTOR:
            edit = slice(position, position + 1)
            reference.apply_([gradient], mean[edit], factor[edit])
        else:
            edits.append((flat, subtracted, multiplier))
    _apply_(edits)


def znorm_(gradients: Sequence[Tensor], eps: float, grad_scale: Tensor | None = None, center: bool = True) -> Tensor:
    """Do what :func:`lightning_znorm.backends.reference.znorm_` does, in float32 where that is enough.

    Sums are those of tiles of 8,192 elements in float32, norms of pieces of 128, both joined in float64; good to
    1e-6 of the standard deviation as long as the mean is not larger than it, and mostly to 1e-7. Where it is, the
    statistics are taken again, of the gradient without its mean. What that cannot do either (constants, magnitudes
    whose squares float32 does not hold, inf and NaN, strides that leave gaps) is left to the reference, and so are
    gradients of float64. Small gradients are taken together.

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
    figures: list[Figures | None] = [None] * len(gradients)
    sizes = [gradient.numel() for gradient in gradients]
    small, large = _sort(gradients, sizes)
    ways = [(batch, normalize_together_) for batch in small]
    ways += [(batch, _normalize_) for batch in _batches(large, sizes)]
    for batch, normalize_ in ways:
        found = normalize_([gradients[position] for position in batch], eps, scale, center)
        for position, these in zip(batch, found, strict=True):
            figures[position] = these
    return torch.tensor(
        [
            these or reference.znorm_([gradient], eps, grad_scale, center).flatten().tolist()
            for these, gradient in zip(figures, gradients, strict=True)
        ],
        dtype=torch.float64,
        device="cpu",
    ).T


def _sort(gradients: Sequence[Tensor], sizes: Sequence[int]) -> tuple[Iterable[list[int]], list[int]]:
    """Return the positions of small gradients, by dtype, and of large ones; neither of empty ones nor of float64."""
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


def _normalize_(gradients: Sequence[Tensor], eps: float, scale: float, center: bool) -> list[Figures | None]:
    """Normalize gradients in place; those whose statistics cannot be trusted stay and get no figures."""
    figures: list[Figures | None] = [None] * len(gradients)
    found = [(n, flat) for n, flat in enumerate(map(in_order_of_memory, gradients)) if flat is not None]
    sums = _add_up([_in_float32(flat) for _, flat in found])
    edits = []
    for (position, flat), (total, squares) in zip(found, sums, strict=True):
        moments = _evaluate(flat, total, squares)
        if moments is None:
            continue
        mean, std = moments[0], math.sqrt(moments[1])
        length = math.hypot(mean, std)
        if not length:  # all 0, and to stay so
            figures[position] = (0.0, 0.0, 1.0)
            continue
        figures[position] = (mean / scale, std / scale, std / length if center else 1.0)
        edits.append((flat, mean if center else 0.0, 1 / ((std if center else length) / scale + eps)))
    _apply_(edits)
    return figures


def _evaluate(flat: Tensor, total: float, squares: float) -> tuple[float, float] | None:
    """Return mean and variance of a gradient, ``None`` if they cannot be trusted."""
    if squares == 0 and not flat.any():
        return 0.0, 0.0
    count, offset = flat.numel(), 0.0
    rest = total / count
    variance = squares / count - rest * rest
    if rest * rest > variance:
        offset = c_float(rest).value  # lest digits are lost
        ((total, squares),) = _add_up([_in_float32(flat, offset)])
        rest = total / count
        variance = squares / count - rest * rest
    return (offset + rest, variance) if are_trusted(rest, variance) else None


def _add_up(gradients: Iterable[Iterable[Tensor]]) -> list[tuple[float, float]]:
    """Return sum and sum of squares of each gradient, which comes in flat chunks of float32."""
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
    return [(_add(islice(total, tiles)), _add(value * value for value in islice(norm, n))) for tiles, n in counts]


@lru_cache(maxsize=_JOINED)
def _zeros(count: int) -> Tensor:
    """Return zeros that serve in every mode."""
    with torch.inference_mode(False):
        return torch.zeros(count, dtype=torch.float32, device="cpu")


def _add(values: Iterable[float]) -> float:
    """Return the sum, rounded once; NaN where there is an inf of either sign."""
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):
        return math.nan


def _split(flat: Tensor, widest: int) -> list[Tensor]:
    """Return one or two matrices with the elements, whose rows are at most so long."""
    count = flat.numel()
    width = choose_width(count, widest)
    if count % width == 0:
        return [flat.view(-1, width)]
    whole = count - count % width
    return [flat[:whole].view(-1, width), flat[whole:].view(1, -1)]


def _in_float32(flat: Tensor, offset: float = 0.0) -> Iterator[Tensor]:
    """Return the elements, less the offset, in one piece if they need not be copied."""
    if flat.dtype == torch.float32 and not offset:
        yield flat
        return
    for chunk in flat.split(_CHUNK):
        yield chunk.float().sub(offset) if offset else chunk.float()


def _apply_(edits: Sequence[tuple[Tensor, float, float]]) -> None:
    """Replace each element of each flat tensor by ``(element - mean) * factor``."""
    # the mean is multiplied by the very factor that float32 makes of it, so that one rounding is left; where it is
    # large, what float32 holds of it is subtracted first
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


def _batches(positions: Iterable[int], sizes: Sequence[int]) -> Iterator[list[int]]:
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
