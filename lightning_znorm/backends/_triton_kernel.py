"""The kernel of the Triton backend: statistics and application of all gradients in one launch."""

import triton
import triton.language as tl

# decisions about a gradient
_UNKNOWN: tl.constexpr = tl.constexpr(0)
_NORMALIZE: tl.constexpr = tl.constexpr(1)
_LEAVE: tl.constexpr = tl.constexpr(2)


@triton.jit
def znorm_kernel(
    gradients,  # (n + 1,) int64: addresses, and the bits of eps in float64
    sizes,  # (n,) int64: elements
    first_tiles,  # (n + 1,) int32: number of the first tile of each gradient
    owners,  # (tiles,) int32: gradient of each tile
    items,  # (n_items,) int32, the work in order: a tile to measure it, ~tile to normalize it
    state,  # (1 + 2n,) int32, zeros: next item; of each gradient, the measured tiles and the decision
    partials,  # (2, tiles) float64: mean and sum of squared deviations of each tile
    factors,  # (4, n) float32: 1 / unit, a power of two; in that unit the mean, its rounding error, 1 / (std + eps)
    stats,  # (3, n) float64: mean, standard deviation, cosine
    grad_scale,  # (1,) float32, read if scaled
    n_items,
    n_tiles,
    n_gradients,
    dtype: tl.constexpr,
    tile_size: tl.constexpr,
    join_size: tl.constexpr,
    is_scaled: tl.constexpr,
    is_aligned: tl.constexpr,
):
    """Process items until none is left.

    Normalizing a tile waits until its gradient is measured, by items of lower numbers. Other programs have taken those
    before and finish them without waiting, so that one running program is enough for progress.
    """
    item = tl.atomic_add(state, 1, sem="relaxed")
    while item < n_items:
        following = tl.atomic_add(state, 1, sem="relaxed")  # early, so that the result has arrived when it is needed
        entry = tl.load(items + item)
        tile = tl.where(entry < 0, ~entry, entry)
        owner = tl.load(owners + tile)
        first = tl.load(first_tiles + owner)
        size = tl.load(sizes + owner)
        start = (tile - first).to(tl.int64) * tile_size
        address = tl.load(gradients + owner).to(tl.pointer_type(dtype))
        if is_aligned:
            address = tl.multiple_of(address, 16)
        address += start
        decision_address = state + 1 + n_gradients + owner
        if entry >= 0:
            mean, squares = _measure(address, size - start, tile_size)
            tl.store(partials + tile, mean)
            tl.store(partials + n_tiles + tile, squares)
            tl.debug_barrier()
            measured = tl.atomic_add(state + 1 + owner, 1, sem="acq_rel") + 1
            tiles = tl.load(first_tiles + owner + 1) - first
            if measured == tiles:
                mean, std = _join(partials + first, n_tiles, tiles, size, tile_size, join_size)
                scale = 1.0
                if is_scaled:
                    scale = tl.load(grad_scale)
                eps = tl.load(gradients + n_gradients).to(tl.float64, bitcast=True)
                _compute_edit(mean, std, scale.to(tl.float64), eps, size, factors + owner, stats + owner, n_gradients)
                tl.debug_barrier()
                tl.atomic_xchg(decision_address, tl.where(std == std, _NORMALIZE, _LEAVE), sem="release")
        else:
            decision = tl.atomic_add(decision_address, 0, sem="acquire")
            while decision == _UNKNOWN:
                decision = tl.atomic_add(decision_address, 0, sem="acquire")
            if decision == _NORMALIZE:
                _normalize(address, size - start, factors + owner, n_gradients, tile_size)
        item = following


@triton.jit
def _measure(address, remaining, tile_size: tl.constexpr):
    """Return mean and sum of squared deviations of a tile; NaN if an element is inf or NaN."""
    offsets = tl.arange(0, tile_size)
    inside = offsets < remaining
    if remaining >= tile_size:
        values = tl.load(address + offsets, eviction_policy="evict_last").to(tl.float32)
    else:
        values = tl.load(address + offsets, mask=inside, other=0.0, eviction_policy="evict_last").to(tl.float32)
        values = tl.where(inside, values, tl.load(address).to(tl.float32))
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
def _join(partials, n_tiles, tiles, size, tile_size: tl.constexpr, join_size: tl.constexpr):
    """Return mean and standard deviation of a gradient, in float64 and in a fixed order."""
    reference = tl.load(partials, cache_modifier=".cg")
    total = tl.zeros((join_size,), tl.float64)
    for start in range(0, tiles, join_size):
        numbers = start + tl.arange(0, join_size)
        inside = numbers < tiles
        counts = tl.minimum(size - numbers.to(tl.int64) * tile_size, tile_size).to(tl.float64)
        means = tl.load(partials + numbers, mask=inside, other=0.0, cache_modifier=".cg")
        total += tl.where(inside, counts * (means - reference), 0.0)
    mean = reference + tl.sum(total, axis=0) / size.to(tl.float64)
    total = tl.zeros((join_size,), tl.float64)
    for start in range(0, tiles, join_size):
        numbers = start + tl.arange(0, join_size)
        inside = numbers < tiles
        counts = tl.minimum(size - numbers.to(tl.int64) * tile_size, tile_size).to(tl.float64)
        means = tl.load(partials + numbers, mask=inside, other=0.0, cache_modifier=".cg")
        squares = tl.load(partials + n_tiles + numbers, mask=inside, other=0.0, cache_modifier=".cg")
        total += tl.where(inside, squares + counts * (means - mean) * (means - mean), 0.0)
    return mean, tl.sqrt(tl.sum(total, axis=0) / size.to(tl.float64))


@triton.jit
def _compute_edit(mean, std, scale, eps, size, factors, stats, n_gradients):
    """Write the statistics without the scale, and the factors that normalize the elements."""
    length = tl.sqrt(mean * mean + std * std)
    # a unit near the elements, so that float32 represents their deviations from the mean and 1 / std
    exponent = (length.to(tl.int64, bitcast=True) >> 52) - 1023
    exponent = tl.minimum(tl.maximum(exponent, -126), 126)
    unit = ((exponent + 1023) << 52).to(tl.float64, bitcast=True)
    high = (mean / unit).to(tl.float32)
    tl.store(factors, (1.0 / unit).to(tl.float32))
    tl.store(factors + n_gradients, high)
    tl.store(factors + 2 * n_gradients, (mean / unit - high.to(tl.float64)).to(tl.float32))
    inverse = tl.where(std == 0.0, 0.0, unit / (std / scale + eps))  # a tiny eps alone would give inf
    tl.store(factors + 3 * n_gradients, inverse.to(tl.float32))
    is_unchanged = (size == 1) | (std != std) | ((mean == 0.0) & (std == 0.0))
    tl.store(stats, mean / scale)
    tl.store(stats + n_gradients, std / scale)
    tl.store(stats + 2 * n_gradients, tl.where(is_unchanged, 1.0, std / tl.where(is_unchanged, 1.0, length)))


@triton.jit
def _normalize(address, remaining, factors, n_gradients, tile_size: tl.constexpr):
    offsets = tl.arange(0, tile_size)
    per_unit = tl.load(factors, cache_modifier=".cg")
    high = tl.load(factors + n_gradients, cache_modifier=".cg")
    low = tl.load(factors + 2 * n_gradients, cache_modifier=".cg")
    inverse = tl.load(factors + 3 * n_gradients, cache_modifier=".cg")
    if remaining >= tile_size:
        values = tl.load(address + offsets, eviction_policy="evict_first").to(tl.float32)
        values = (values * per_unit - high - low) * inverse
        tl.store(address + offsets, values.to(address.dtype.element_ty), eviction_policy="evict_first")
    else:
        inside = offsets < remaining
        values = tl.load(address + offsets, mask=inside, eviction_policy="evict_first").to(tl.float32)
        values = (values * per_unit - high - low) * inverse
        tl.store(address + offsets, values.to(address.dtype.element_ty), mask=inside, eviction_policy="evict_first")
