"""Moments and edits of tiles, in float64 between the elements of float32."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_znorm.backends._segments import Segments
from lightning_znorm.backends._tiles import Tiles
from lightning_znorm.backends.moments import Moments


@dataclass(frozen=True)
class ScaledMoments:
    """Moments of rows or gradients.

    Attributes:
        mean: Parts of the mean, of shape ``(parts, n)``: one of float64, or float32 and its rounding error.
        squares: Sum of the squared deviations from the mean; inf or NaN if an element is.
        count: Number of elements.
        unit: Powers of two in which mean and squares are.

    """

    mean: Tensor
    squares: Tensor
    count: Tensor
    unit: Tensor | float = 1.0

    def moments(self) -> Moments:
        """Return the moments in their unit, without the rounding error of a mean in float32."""
        return Moments(self.count, self.mean[0], self.squares)


def measure(tiles: Tiles) -> ScaledMoments:
    """Return the moments of each row."""
    # and a last column of zeros; deviations are from the origin of a tile
    sums = torch.zeros(4, len(tiles) + 1, dtype=torch.float64, device=tiles.device)
    for span, values in tiles.read():
        origin, total, norm, _ = sums[:, span]
        padding = refer_to_origins(values, origin, tiles.find_padding(span))
        fill(values, padding)
        torch.sum(values, dim=1, dtype=torch.float64, out=total)
        torch.linalg.vector_norm(values, dim=1, dtype=torch.float64, out=norm)
    sums[2].square_()
    return _combine(tiles.rows, sums)


def combine(segments: Segments, rows: ScaledMoments) -> ScaledMoments:
    """Return the moments of each gradient from those of its rows."""
    sums = torch.zeros(4, len(rows.squares) + 1, dtype=torch.float64, device=rows.squares.device)
    sums[0, :-1], sums[2, :-1] = rows.mean[0], rows.squares
    return _combine(segments, sums)


def apply_(tiles: Tiles, mean: Tensor, factor: Tensor, limit: Tensor | None = None) -> None:
    """Replace elements by ``(element - mean) * factor`` of their row, or its limit, unless the factor is NaN."""
    # without the last 24 bits, so that products with elements are exact, and an element equal to the mean becomes 0
    factor = (factor.view(torch.int64) & -(1 << 24)).view(torch.float64)
    # adding -0 changes no 0 of either sign
    offset = (-mean * factor).nan_to_num(-0.0, math.inf, -math.inf)
    edit = [factor.nan_to_num(1.0, math.inf, -math.inf), offset, *([] if limit is None else [limit])]
    columns = tiles.rows.spread(torch.stack(edit)).unsqueeze(2)
    for span, values in tiles.edit():
        multiplier, summand, *limits = columns[:, span]
        torch.addcmul(summand, values, multiplier, out=values)
        for bound in limits:
            values.clamp_(-bound, bound)


def refer_to_origins(values: Tensor, origin: Tensor, padding: Tensor | None) -> Tensor | None:
    """Subtract from each tile the value nearest to zero within its range, and return the padding.

    Relative to it, a constant tile is exactly 0, and no element loses digits.
    """
    if padding is not None:
        partial = values[-len(padding) :]
        torch.where(padding, partial[:, :1].expand_as(partial), partial, out=partial)
    origin.clamp_(*torch.aminmax(values, dim=1))
    values.sub_(origin.unsqueeze(1))
    return padding


def fill(values: Tensor, padding: Tensor | None) -> None:
    """Set the padding of the last tiles to 0."""
    if padding is not None:
        values[-len(padding) :].masked_fill_(padding, 0.0)


def _combine(segments: Segments, sums: Tensor) -> ScaledMoments:
    """Return the moments of wholes from origins, sums and sums of squares of parts, and a row that is overwritten."""
    origin, total, squares, total_from_first = sums[:, :-1]
    first = segments.of_first(sums[:1])
    shift = origin - segments.spread(first[0])
    torch.addcmul(total, segments.count, shift, out=total_from_first)
    squares.addcmul_(shift, total + total_from_first)
    squares, total = segments.add(sums[2:])
    offset = total / segments.total
    return ScaledMoments(first + offset, squares.addcmul_(total, offset, value=-1), segments.total)
