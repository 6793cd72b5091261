"""Gradient transforms on any device, by few PyTorch operations in float32, without waiting for the device."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_znorm.backends import _tile_moments, _tile_pairs, reference
from lightning_znorm.backends._memory import to_device, widest_dtype
from lightning_znorm.backends._tile_moments import ScaledMoments
from lightning_znorm.backends._tiles import Tiles
from lightning_znorm.backends.moments import Moments, compute_edit


def measure(gradients: Sequence[Tensor]) -> Moments:
    """Compute :func:`lightning_znorm.backends.reference.measure`, in float32 within small tiles.

    Args:
        gradients: As for the reference.

    Returns:
        As the reference, on the gradients' device; pairs of float32 on a device without float64, see
        :class:`.Moments`.

    Example::

        >>> moments = measure([torch.tensor([1.0, 2.0, 3.0, 6.0]), torch.empty(0)])
        >>> moments.count.tolist(), moments.mean.tolist(), moments.squares.tolist()
        ([4.0, 0.0], [3.0, 0.0], [14.0, 0.0])

    """
    if any(map(_is_wide, gradients)):
        rows = _separate(gradients, lambda some: _stack(measure(some)), lambda some: _stack(reference.measure(some)))
        return Moments(*rows)
    tiles = _tile([gradient if gradient.numel() else gradient.new_zeros(1) for gradient in gradients])
    scaled = _measure(tiles)
    sizes = to_device([gradient.numel() for gradient in gradients], torch.int64, tiles.device)
    if not isinstance(scaled.unit, Tensor):
        return Moments(sizes.double(), scaled.mean[0], scaled.squares)
    count = sizes.float()
    return Moments(
        torch.stack([count, (sizes - count.long()).float()]),
        scaled.mean * scaled.unit,
        torch.stack([scaled.squares, torch.zeros_like(scaled.squares)]) * scaled.unit * scaled.unit,
    )


def apply_(gradients: Sequence[Tensor], mean: Tensor, factor: Tensor) -> None:
    """Compute :func:`lightning_znorm.backends.reference.apply_` by one or two operations on float32.

    A result beyond the largest number of the dtype becomes inf; the factor from a gradient's own moments gives none.

    Args:
        gradients: As for the reference.
        mean: As for the reference, on the device of the moments; a pair of float32, of shape ``(2, len(gradients))``,
            on a device without float64.
        factor: The same.

    Example::

        >>> gradient = torch.tensor([1.0, 2.0, 3.0, 6.0])
        >>> apply_([gradient], mean=torch.tensor([3.0]).double(), factor=torch.tensor([0.5]).double())
        >>> gradient
        tensor([-1.0000, -0.5000,  0.0000,  1.5000])

    """
    wide = [position for position, gradient in enumerate(gradients) if _is_wide(gradient)]
    others = [position for position, gradient in enumerate(gradients) if not _is_wide(gradient) and gradient.numel()]
    if wide:
        reference.apply_([gradients[position] for position in wide], *_choose(wide, mean, factor))
    if not others:
        return
    if len(others) < len(gradients):
        mean, factor = _choose(others, mean, factor)
    tiles = _tile([gradients[position] for position in others])
    if mean.ndim == 1:
        _tile_moments.apply_(tiles, mean, factor)
        return
    # units near the deviations from the mean, so that float32 represents them and the factor
    unit = _tile_pairs.find_unit(torch.maximum(mean[0].abs(), factor[0].abs().reciprocal()))
    _tile_pairs.apply_(tiles, mean / unit, factor[0] * unit, unit)


def znorm_(gradients: Sequence[Tensor], eps: float, grad_scale: Tensor | None = None, center: bool = True) -> Tensor:
    """Compute :func:`lightning_znorm.backends.reference.znorm_` in float32.

    The gradients are copied side by side into buckets of small tiles, which are measured relative to the value nearest
    to 0 within the range of each. The tiles of a gradient are joined in float64 if the device has it. float64 gradients
    are left to the reference.

    Args:
        gradients: Dense, real, non-empty floating-point tensors of any shape and strides, all on one device.
        eps: As for the reference.
        grad_scale: As for the reference.
        center: As for the reference.

    Returns:
        As the reference, on the gradients' device; in float32 if it has no float64.

    Example::

        >>> gradient = torch.tensor([1.0, 2.0, 3.0, 6.0])
        >>> mean, std, cosine = znorm_([gradient], eps=1e-10)
        >>> gradient
        tensor([-1.0690, -0.5345,  0.0000,  1.6036])

    """
    if any(map(_is_wide, gradients)):
        options = (eps, grad_scale, center)
        return _separate(gradients, lambda some: znorm_(some, *options), lambda some: reference.znorm_(some, *options))
    tiles = _tile(gradients)
    scaled = _measure(tiles)
    scale = _scale(grad_scale, tiles)
    mean, factor, statistics = compute_edit(scaled.moments(), eps / scaled.unit, scale, center)
    if isinstance(scaled.unit, Tensor):
        _tile_pairs.apply_(tiles, scaled.mean if center else torch.zeros_like(scaled.mean), factor, scaled.unit)
        statistics[:2].mul_(scaled.unit)
    else:
        _tile_moments.apply_(tiles, mean, factor)
    return statistics


def centralize_(gradients: Sequence[Tensor], grad_scale: Tensor | None = None) -> Tensor:
    """Compute :func:`lightning_znorm.backends.reference.centralize_` in float32.

    Args:
        gradients: As for :func:`znorm_`.
        grad_scale: As for the reference.

    Returns:
        As :func:`znorm_`.

    Example::

        >>> gradient = torch.tensor([[1.0, 2.0, 6.0], [5.0, 5.0, 5.0]])
        >>> mean, std, cosine = centralize_([gradient])
        >>> gradient
        tensor([[-2., -1.,  3.],
                [ 0.,  0.,  0.]])

    """
    if any(map(_is_wide, gradients)):
        return _separate(
            gradients, lambda some: centralize_(some, grad_scale), lambda some: reference.centralize_(some, grad_scale)
        )
    tiles = _tile(gradients, by_row=True)
    rows = _measure(tiles)
    combine = _tile_pairs.combine if isinstance(rows.unit, Tensor) else _tile_moments.combine
    whole = combine(tiles.gradients, rows)
    is_centered = [gradient.ndim > 1 and gradient.numel() > len(gradient) for gradient in gradients]
    edit = [[1.0 if centered else math.nan for centered in is_centered], [torch.finfo(g.dtype).max for g in gradients]]
    factor, largest = to_device(torch.tensor(edit, dtype=tiles.dtype, device="cpu"), tiles.dtype, tiles.device)
    factor = factor + 0 * whole.squares  # NaN if an element is inf or NaN
    limit = (largest * factor).nan_to_num(math.inf)
    before = whole.squares + whole.count * whole.mean[0].square()
    # a projection: the inner product of before and after is the squared norm of after
    after = tiles.gradients.add(torch.nn.functional.pad(rows.squares, (0, 1)).unsqueeze(0))[0]
    cosine = ((after / before).sqrt().clamp(max=1.0) * factor).nan_to_num(1.0)
    factor, limit = tiles.gradients.spread(torch.stack([factor, limit]))
    if isinstance(rows.unit, Tensor):
        _tile_pairs.apply_(tiles, rows.mean, factor * rows.unit, rows.unit, limit)
    else:
        _tile_moments.apply_(tiles, rows.mean[0], factor, limit)
    unit = whole.unit / _scale(grad_scale, tiles)
    std = (whole.squares / whole.count).sqrt()
    return torch.stack([whole.mean[0] * unit, std * unit, cosine])


def _tile(gradients: Sequence[Tensor], by_row: bool = False) -> Tiles:
    return Tiles(gradients, widest_dtype(gradients[0].device), by_row)


def _measure(tiles: Tiles) -> ScaledMoments:
    return _tile_moments.measure(tiles) if tiles.dtype == torch.float64 else _tile_pairs.measure(tiles)


def _separate(
    gradients: Sequence[Tensor], function: Callable[[list[Tensor]], Tensor], of_wide: Callable[[list[Tensor]], Tensor]
) -> Tensor:
    """Return a column per gradient, those of float64 from another function."""
    order = sorted(range(len(gradients)), key=lambda position: not _is_wide(gradients[position]))
    count = sum(map(_is_wide, gradients))
    wide, others = [gradients[n] for n in order[:count]], [gradients[n] for n in order[count:]]
    columns = torch.cat([of_wide(wide), *([function(others)] if others else [])], dim=1)
    back = sorted(range(len(order)), key=order.__getitem__)
    return columns.index_select(1, to_device(back, torch.int64, columns.device))


def _choose(positions: list[int], *tables: Tensor) -> list[Tensor]:
    chosen = to_device(positions, torch.int64, tables[0].device)
    return [table.index_select(-1, chosen) for table in tables]


def _stack(moments: Moments) -> Tensor:
    return torch.stack([moments.count, moments.mean, moments.squares])


def _is_wide(gradient: Tensor) -> bool:
    return gradient.dtype == torch.float64


def _scale(grad_scale: Tensor | None, tiles: Tiles) -> Tensor | float:
    return 1.0 if grad_scale is None else grad_scale.to(tiles.device, tiles.dtype).reshape(())
