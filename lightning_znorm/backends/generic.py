"""Gradient transforms on any device, by PyTorch operations in float32, without waiting for the device."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_znorm.backends import reference
from lightning_znorm.backends._memory import to_device, view_in_memory_order
from lightning_znorm.backends.moments import Moments, compute_edit

_TILE = 4096  # elements that are summed in float32


def measure(gradients: Sequence[Tensor]) -> Moments:
    """Compute :func:`lightning_znorm.backends.reference.measure`, in float32 within tiles.

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
        parts = [(reference.measure if _is_wide(gradient) else measure)([gradient]) for gradient in gradients]
        return Moments(*[torch.cat([getattr(part, name) for part in parts]) for name in ("count", "mean", "squares")])
    scaled = _measure([gradient if gradient.numel() else gradient.new_zeros(1) for gradient in gradients])
    count = to_device([gradient.numel() for gradient in gradients], torch.int64, gradients[0].device)
    if scaled.squares.dtype == torch.float64:
        unit = scaled.unit.double()
        return Moments(count.double(), scaled.mean() * unit, scaled.squares * unit * unit)
    pairs = [
        torch.stack([count.float(), (count - count.float().long()).float()]),
        torch.stack([scaled.high, scaled.low]) * scaled.unit,
        torch.stack([scaled.squares, torch.zeros_like(scaled.squares)]) * scaled.unit * scaled.unit,
    ]
    return Moments(*pairs)


def apply_(gradients: Sequence[Tensor], mean: Tensor, factor: Tensor) -> None:
    """Compute :func:`lightning_znorm.backends.reference.apply_` in two operations on float32.

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
    if any(map(_is_wide, gradients)):
        for gradient, *edit in zip(gradients, mean.split(1, dim=-1), factor.split(1, dim=-1), strict=True):
            (reference.apply_ if _is_wide(gradient) else apply_)([gradient], *edit)
        return
    if mean.ndim == 1:
        high = mean.float()
        mean, factor = torch.stack([high.double(), mean - high]), factor.unsqueeze(0)
    high, low = mean
    factor = factor[0]
    # units near the deviations from the mean, so that float32 represents them and the factor
    exponent = _exponent(torch.maximum(high.abs(), 1 / factor.abs()))
    inverse, unit = _power_of_two(-exponent), _power_of_two(exponent)
    _edit_(gradients, inverse, (high * inverse).float(), (low * inverse).float(), (factor * unit).float())


def znorm_(gradients: Sequence[Tensor], eps: float, grad_scale: Tensor | None = None, center: bool = True) -> Tensor:
    """Compute :func:`lightning_znorm.backends.reference.znorm_` in two passes over float32.

    The gradients are measured one after the other, relative to the value nearest to 0 within the range of each and in
    units of a power of two near its largest element. The factors of all gradients are computed together. float64 is
    left to the reference.

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
        parts = [
            (reference.znorm_ if _is_wide(gradient) else znorm_)([gradient], eps, grad_scale, center)
            for gradient in gradients
        ]
        return torch.cat(parts, dim=1)
    scaled = _measure(gradients)
    unit = scaled.unit.to(scaled.squares.dtype)
    scale = _scale(grad_scale, unit.device)
    _, factor, statistics = compute_edit(scaled.moments(), eps / unit, scale, center)
    mean = (scaled.high, scaled.low) if center else (torch.zeros_like(scaled.high),) * 2
    _edit_(gradients, scaled.inverse, *mean, factor.float())
    statistics[:2].mul_(unit)
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
        return reference.centralize_(gradients, grad_scale)
    scaled = _measure(gradients)
    scale = _scale(grad_scale, gradients[0].device)
    unit = scaled.unit.to(scaled.squares.dtype)
    mean, std = scaled.mean(), (scaled.squares / scaled.count).sqrt()
    norms = [
        _centralize_one_(gradient, scaled, position)
        if gradient.ndim > 1 and gradient.numel() > len(gradient)
        else torch.full_like(scaled.unit[position], torch.nan)
        for position, gradient in enumerate(gradients)
    ]
    # a projection: the inner product of before and after is the squared norm of after
    before = (scaled.count * (mean.square() + std.square())).sqrt()
    cosine = (torch.stack(norms).to(before.dtype) / before).clamp(max=1.0)
    return torch.stack([mean * unit / scale, std * unit / scale, torch.where(cosine.isfinite(), cosine, 1.0)])


@dataclass(frozen=True)
class _ScaledMoments:
    """Moments of each gradient in a separate unit, all of shape ``(n,)``.

    Attributes:
        count: Number of elements.
        unit: A power of two near the largest absolute value.
        inverse: One over the unit.
        high: Mean in float32.
        low: Rounding error of ``high``.
        squares: Sum of the squared deviations from the mean; inf or NaN if an element is.

    """

    count: Tensor
    unit: Tensor
    inverse: Tensor
    high: Tensor
    low: Tensor
    squares: Tensor

    def mean(self) -> Tensor:
        return self.high.to(self.squares.dtype) + self.low

    def moments(self) -> Moments:
        return Moments(self.count, self.mean(), self.squares)


def _measure(gradients: Sequence[Tensor]) -> _ScaledMoments:
    device = gradients[0].device
    wide = widest_dtype(device)
    counts = [gradient.numel() for gradient in gradients]
    count = to_device(counts, wide, device)
    lowest, highest = torch.stack([torch.stack(torch.aminmax(gradient)).float() for gradient in gradients], dim=1)
    largest = torch.maximum(-lowest, highest)
    exponent = _exponent(torch.where(largest.isfinite(), largest, 1.0))
    inverse = _power_of_two(-exponent)
    # relative to this, a constant gradient is exactly 0, and no element loses digits
    start = _nearest_to_zero(lowest, highest) * inverse
    means, residuals, sums = [], [], []
    for gradient, factor, origin, elements in zip(gradients, inverse, start, counts, strict=True):
        values = view_in_memory_order(gradient.float() * factor)
        assert values is not None  # results have no gaps
        values.sub_(origin)
        means.append((_sum(values, wide) / elements).float())
        values.sub_(means[-1])
        residuals.append(_sum(values, wide))
        sums.append(_sum(values.square_(), wide))
    residual = torch.stack(residuals) / count
    squares = torch.stack(sums) - count * residual.square()
    high, low = _add_exactly(start, torch.stack(means))
    return _ScaledMoments(count, _power_of_two(exponent), inverse, high, low + residual.float(), squares.clamp(min=0.0))


def _centralize_one_(gradient: Tensor, scaled: _ScaledMoments, position: int) -> Tensor:
    """Give each row a mean of zero, unless an element is inf or NaN; return the norm in the gradient's unit."""
    rows = tuple(range(1, gradient.ndim))
    values = gradient.float() * scaled.inverse[position]
    values.sub_(_nearest_to_zero(values.amin(dim=rows, keepdim=True), values.amax(dim=rows, keepdim=True)))
    for _ in range(2):
        values.sub_(values.mean(dim=rows, keepdim=True))
    largest = torch.finfo(gradient.dtype).max
    result = values.mul(scaled.unit[position]).clamp_(-largest, largest)
    gradient.copy_(torch.where(scaled.squares[position].isfinite(), result, gradient))
    flat = view_in_memory_order(values.square_())
    assert flat is not None  # results have no gaps
    return _sum(flat, scaled.squares.dtype).sqrt()


def _edit_(gradients: Sequence[Tensor], inverse: Tensor, high: Tensor, low: Tensor, factor: Tensor) -> None:
    """Replace each element by ``(element * inverse - high - low) * factor``, unless the factor is NaN."""
    is_unchanged = factor.isnan()
    inverse, factor = [torch.where(is_unchanged, 1.0, number) for number in (inverse, factor)]
    # adding -0 changes no 0 of either sign
    high, low = [torch.where(is_unchanged, -0.0, -part) for part in (high, low)]
    for gradient, *edit in zip(gradients, inverse, high, low * factor, factor, strict=True):
        values = gradient.float()  # the gradient itself if it is float32
        torch.addcmul(edit[1], values, edit[0], out=values)
        torch.addcmul(edit[2], values, edit[3], out=values)
        if values is not gradient:
            gradient.copy_(values)


def _sum(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the sum of a flat tensor, in a wider dtype between tiles."""
    stop = len(values) - len(values) % _TILE
    total = values[stop:].sum()
    if stop:
        total = torch.cat([values[:stop].view(-1, _TILE).sum(dim=1), total.view(1)]).sum(dtype=dtype)
    return total.to(dtype)


def _nearest_to_zero(lowest: Tensor, highest: Tensor) -> Tensor:
    return torch.zeros_like(lowest).clamp(lowest, highest)


def _is_wide(gradient: Tensor) -> bool:
    return gradient.dtype == torch.float64


def _exponent(value: Tensor) -> Tensor:
    """Return the binary exponent of a number, within the range of :func:`_power_of_two`."""
    return value.log2().floor().clamp(-126, 126).int()


def _power_of_two(exponent: Tensor) -> Tensor:
    """Return two to the power of an integer, from its bits, so that it is exact on every device."""
    return ((exponent + 127) << 23).view(torch.float32)


def _add_exactly(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rounded sum and its rounding error (Knuth's two-sum)."""
    total = first + second
    other = total - first
    return total, (first - (total - other)) + (second - other)


def _scale(grad_scale: Tensor | None, device: torch.device) -> Tensor | float:
    return 1.0 if grad_scale is None else grad_scale.to(device, widest_dtype(device)).reshape(())


def widest_dtype(device: torch.device) -> torch.dtype:
    """Return float64, or float32 if the device lacks it."""
    return torch.float32 if device.type == "mps" else torch.float64
