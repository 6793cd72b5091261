"""Moments and edits of tiles in float32 alone, each mean with its rounding error."""

import torch
from torch import Tensor

from lightning_znorm._torch import norm_all
from lightning_znorm.backends._segments import Segments
from lightning_znorm.backends._tile_moments import ScaledMoments, fill, refer_to_origins
from lightning_znorm.backends._tiles import Tiles


def measure(tiles: Tiles) -> ScaledMoments:
    """Return the moments of each row, in a power of two near the largest element of the gradient."""
    largest = torch.stack(list(norm_all(tiles.flats, torch.inf, torch.float32)))
    unit = find_unit(largest)
    if tiles.gradients is not tiles.rows:
        unit = tiles.gradients.spread(unit)
    inverse = tiles.rows.spread(unit.reciprocal()).unsqueeze(1)
    count = tiles.rows.count
    # and a last column of zeros
    sums = torch.zeros(4, len(tiles) + 1, device=tiles.device, dtype=torch.float32)
    for span, values in tiles.read():
        origin, mean, residual, squares = sums[:, span]
        padding = refer_to_origins(values.mul_(inverse[span]), origin, tiles.find_padding(span))
        fill(values, padding)
        torch.div(values.sum(dim=1), count[span], out=mean)
        values.sub_(mean.unsqueeze(1))
        fill(values, padding)
        torch.sum(values, dim=1, out=residual)
        torch.sum(values.square_(), dim=1, out=squares)
    residual, squares = sums[2:, :-1]
    residual.div_(count)
    squares.addcmul_(residual.square(), count, value=-1)
    return _combine(tiles.rows, sums[:3], squares, unit)


def combine(segments: Segments, rows: ScaledMoments) -> ScaledMoments:
    """Return the moments of each gradient from those of its rows."""
    assert isinstance(rows.unit, Tensor)
    return _combine(segments, rows.mean, rows.squares, segments.of_first(rows.unit.unsqueeze(0))[0])


def apply_(tiles: Tiles, mean: Tensor, factor: Tensor, unit: Tensor, limit: Tensor | None = None) -> None:
    """Replace elements by ``(element / unit - mean) * factor`` of their row, or its limit, unless the factor is NaN.

    Args:
        tiles: Of gradients.
        mean: The mean in units and its rounding error, of shape ``(2, rows)``.
        factor: For numbers in units.
        unit: Power of two.
        limit: Largest absolute value of a result.

    """
    is_unchanged = factor.isnan()
    factor, inverse = factor.masked_fill(is_unchanged, 1.0), unit.reciprocal().masked_fill(is_unchanged, 1.0)
    # adding -0 changes no 0 of either sign
    high, low = (-mean).masked_fill(is_unchanged, -0.0)
    edit = [inverse, high, factor, low * factor, *([] if limit is None else [limit])]
    columns = tiles.rows.spread(torch.stack(edit)).unsqueeze(2)
    for span, values in tiles.edit():
        to_units, summand, multiplier, remainder, *limits = columns[:, span]
        torch.addcmul(summand, values, to_units, out=values)
        torch.addcmul(remainder, values, multiplier, out=values)
        for bound in limits:
            values.clamp_(-bound, bound)


def find_unit(value: Tensor) -> Tensor:
    """Return the largest power of two that is at most a number, if it and its inverse are normal numbers."""
    clamped = value.nan_to_num(1.0).clamp(2.0**-126, 2.0**126)
    return (clamped.view(torch.int32) & 0x7F800000).view(torch.float32)  # without the mantissa


def add_exactly(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rounded sum and its rounding error (Knuth's two-sum)."""
    total = first + second
    other = total - first
    return total, (first - (total - other)) + (second - other)


def _combine(segments: Segments, mean: Tensor, squares: Tensor, unit: Tensor) -> ScaledMoments:
    """Return the moments of wholes from those of parts, relative to the mean of the first part (Chan's formula)."""
    first = segments.of_first(mean)
    parts = mean[:, : len(segments.owner)]
    shift = (parts - segments.spread(first)).sum(dim=0)
    offset = _add(segments, segments.count * shift) / segments.total
    deviation = shift - segments.spread(offset)
    squares = _add(segments, torch.addcmul(squares, segments.count * deviation, deviation))
    high, low = add_exactly(first[0], first[1])
    high, error = add_exactly(high, offset)
    low = first[2:].sum(dim=0) + low + error
    return ScaledMoments(torch.stack([high, low]), squares, segments.total, unit)


def _add(segments: Segments, values: Tensor) -> Tensor:
    return segments.add(torch.nn.functional.pad(values, (0, 1)).unsqueeze(0))[0]
