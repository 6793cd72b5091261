"""Three Triton kernels: the moments of tiles, the moments and the edit of segments, and the edit of tiles.

A segment is a gradient, or a row of one; a tile is a part of a segment. The order of the stream is the only
synchronization between the kernels. All integers are read from a table or not specialized, so that each kernel is
compiled once per dtype.

The table of n segments, of int64: the bits of eps in float64; 1 to subtract the mean, else 0; 1 for a scale, else 0;
n addresses; n numbers of elements; n + 1 numbers of the first tile; n widths of the tiles, in elements; and, as pairs
of int32, the segment of each tile.
"""

import triton
import triton.language as tl

_HEADER: tl.constexpr = tl.constexpr(3)


@triton.jit(do_not_specialize=["n_segments", "n_tiles"])
def measure_kernel(table, partials, n_segments, n_tiles, dtype: tl.constexpr, tile_size: tl.constexpr):
    """Write mean and sum of squared deviations of a tile to float64 ``partials`` of shape (2, tiles)."""
    tile = tl.program_id(0)
    address, remaining, _ = _locate(table, tile, n_segments, dtype, tile_size)
    mean, squares = _measure(address, remaining, dtype, tile_size)
    tl.store(partials + tile, mean)
    tl.store(partials + n_tiles + tile, squares)


@triton.jit(do_not_specialize=["grad_scale", "n_segments", "n_tiles"])
def conclude_kernel(table, partials, grad_scale, moments, edit, stats, n_segments, n_tiles, join_size: tl.constexpr):
    """Join the tiles of a segment in float64, in a fixed order.

    All results are float64, with a column per segment: ``moments`` are the mean, the sum of squared deviations from it,
    and the sum of those from the means of the tiles; ``edit`` are mean and factor for :func:`apply_kernel`; ``stats``
    are mean, standard deviation and cosine. ``grad_scale`` is read if the table says so.
    """
    segment = tl.program_id(0)
    size = tl.load(table + _HEADER + n_segments + segment)
    first = tl.load(table + _HEADER + 2 * n_segments + segment)
    tiles = tl.load(table + _HEADER + 2 * n_segments + segment + 1) - first
    width = tl.load(table + _HEADER + 3 * n_segments + 1 + segment)
    mean, squares, within = _join(partials + first, n_tiles, tiles, size, width, join_size)
    tl.store(moments + segment, mean)
    tl.store(moments + n_segments + segment, squares)
    tl.store(moments + 2 * n_segments + segment, within)
    eps = tl.load(table).to(tl.float64, bitcast=True)
    is_centered = tl.load(table + 1) != 0
    scale = tl.full((), 1.0, tl.float64)
    if tl.load(table + 2) != 0:
        scale = tl.load(grad_scale)
    count = tl.maximum(size, 1).to(tl.float64)
    std = tl.sqrt(squares / count)
    length = tl.sqrt(mean * mean + squares / count)
    divisor = tl.where(is_centered, std, length)
    factor = tl.where(divisor == 0.0, 0.0, 1.0 / (divisor / scale + eps))
    is_unchanged = (size < 2) | (std != std)
    tl.store(edit + segment, tl.where(is_centered, mean, 0.0))
    tl.store(edit + n_segments + segment, tl.where(is_unchanged, float("nan"), factor))
    is_parallel = is_unchanged | (length == 0.0) | (is_centered == 0)
    tl.store(stats + segment, mean / scale)
    tl.store(stats + n_segments + segment, std / scale)
    tl.store(stats + 2 * n_segments + segment, tl.where(is_parallel, 1.0, std / tl.where(is_parallel, 1.0, length)))


@triton.jit(do_not_specialize=["n_segments", "largest"])
def apply_kernel(table, edit, n_segments, largest, dtype: tl.constexpr, tile_size: tl.constexpr):
    """Subtract the mean from a tile and multiply it by the factor, unless that is NaN."""
    # from the last tile to the first: the last ones were read most recently, and may still be in the cache
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    address, remaining, segment = _locate(table, tile, n_segments, dtype, tile_size)
    mean = tl.load(edit + segment)
    factor = tl.load(edit + n_segments + segment)
    if factor == factor:
        # in units of a power of two near the deviations from the mean, so that float32 represents them and the factor
        width = tl.where(factor == 0.0, 0.0, 1.0 / tl.where(factor == 0.0, 1.0, tl.abs(factor)))
        exponent = (tl.maximum(tl.abs(mean), width).to(tl.int64, bitcast=True) >> 52) - 1023
        exponent = tl.minimum(tl.maximum(exponent, -126), 126)
        unit = ((1023 + exponent) << 52).to(tl.float64, bitcast=True)
        inverse = ((1023 - exponent) << 52).to(tl.float64, bitcast=True)
        high = (mean * inverse).to(tl.float32)
        low = (mean * inverse - high.to(tl.float64)).to(tl.float32)
        per_unit = inverse.to(tl.float32)
        multiplier = (factor * unit).to(tl.float32)
        offsets = tl.arange(0, tile_size)
        if (remaining >= tile_size) & (address % 16 == 0):
            place = tl.multiple_of(address.to(tl.pointer_type(dtype)), 16) + offsets
            values = (tl.load(place).to(tl.float32) * per_unit - high - low) * multiplier
            tl.store(place, tl.minimum(tl.maximum(values, -largest), largest).to(dtype))
        else:
            place = address.to(tl.pointer_type(dtype)) + offsets
            inside = offsets < remaining
            values = (tl.load(place, mask=inside).to(tl.float32) * per_unit - high - low) * multiplier
            tl.store(place, tl.minimum(tl.maximum(values, -largest), largest).to(dtype), mask=inside)


@triton.jit
def _locate(table, tile, n_segments, dtype: tl.constexpr, tile_size: tl.constexpr):
    """Return the address of a tile, the elements from there to the end of its segment, and the segment."""
    owners = (table + _HEADER + 4 * n_segments + 1).to(tl.pointer_type(tl.int32))
    segment = tl.load(owners + tile)
    first = tl.load(table + _HEADER + 2 * n_segments + segment)
    start = (tile - first) * tile_size
    address = tl.load(table + _HEADER + segment) + start * (dtype.primitive_bitwidth // 8)
    return address, tl.load(table + _HEADER + n_segments + segment) - start, segment


@triton.jit
def _measure(address, remaining, dtype: tl.constexpr, tile_size: tl.constexpr):
    """Return mean and sum of squared deviations of a tile; NaN if an element is inf or NaN."""
    offsets = tl.arange(0, tile_size)
    inside = offsets < remaining
    # a pointer in each branch, so that the compiler knows the first one to be aligned
    if (remaining >= tile_size) & (address % 16 == 0):
        place = tl.multiple_of(address.to(tl.pointer_type(dtype)), 16)
        values = tl.load(place + offsets).to(tl.float32)
    else:
        place = address.to(tl.pointer_type(dtype))
        values = tl.load(place + offsets, mask=inside, other=0.0).to(tl.float32)
        values = tl.where(inside, values, tl.load(place).to(tl.float32))
    count = tl.minimum(remaining, tile_size).to(tl.float32)
    # in units of a power of two near the largest element, from its bits
    largest = tl.max(values.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=0)
    exponent = largest >> 23
    unit = (tl.maximum(254 - exponent, 1) << 23).to(tl.float32, bitcast=True)
    # relative to the value nearest to 0 in its range, a constant tile is exactly 0
    lowest, highest = tl.min(values, axis=0), tl.max(values, axis=0)
    origin = tl.where(lowest > 0.0, lowest, tl.where(highest < 0.0, highest, 0.0))
    deviations = tl.where(inside, values * unit - origin * unit, 0.0)
    center = tl.sum(deviations, axis=0) / count
    deviations = tl.where(inside, deviations - center, 0.0)
    residual = tl.sum(deviations, axis=0) / count
    squares = tl.sum(deviations * deviations, axis=0).to(tl.float64)
    squares = tl.maximum(squares - (count * residual * residual).to(tl.float64), 0.0)
    unit = unit.to(tl.float64)
    mean = origin.to(tl.float64) + (center.to(tl.float64) + residual.to(tl.float64)) / unit
    squares = squares / (unit * unit)
    is_finite = exponent < 255
    return tl.where(is_finite, mean, float("nan")), tl.where(is_finite, squares, float("nan"))


@triton.jit
def _join(partials, n_tiles, tiles, size, width, join_size: tl.constexpr):
    """Return the mean, the squared deviations from it, and those from the means of the tiles; 0 for no elements."""
    count = tl.maximum(size, 1).to(tl.float64)
    reference = tl.load(partials, mask=tiles > 0, other=0.0)
    total = tl.zeros((join_size,), tl.float64)
    for start in range(0, tiles, join_size):
        numbers = start + tl.arange(0, join_size)
        inside = numbers < tiles
        counts = tl.minimum(size - numbers * width, width).to(tl.float64)
        means = tl.load(partials + numbers, mask=inside, other=0.0)
        total += tl.where(inside, counts * (means - reference), 0.0)
    mean = reference + tl.sum(total, axis=0) / count
    within = tl.zeros((join_size,), tl.float64)
    between = tl.zeros((join_size,), tl.float64)
    for start in range(0, tiles, join_size):
        numbers = start + tl.arange(0, join_size)
        inside = numbers < tiles
        counts = tl.minimum(size - numbers * width, width).to(tl.float64)
        deviations = tl.load(partials + numbers, mask=inside, other=0.0) - mean
        within += tl.load(partials + n_tiles + numbers, mask=inside, other=0.0)
        between += tl.where(inside, counts * deviations * deviations, 0.0)
    within = tl.sum(within, axis=0)
    return mean, within + tl.sum(between, axis=0), within
