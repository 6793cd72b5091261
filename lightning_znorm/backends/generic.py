"""Gradient transforms on any device, by PyTorch's own operations in float32, without waiting for the device."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_znorm.backends import reference
from lightning_znorm.backends._memory import in_order_of_memory, to_device

_TILE = 4096  # elements that are summed in float32


def znorm_(gradients: Sequence[Tensor], eps: float, grad_scale: Tensor | None = None) -> Tensor:
    """Do what :func:`lightning_znorm.backends.reference.znorm_` does, in two passes over float32.

    The statistics are those of one gradient after the other, relative to the value nearest to 0 within its range and in
    units of a power of two near its largest. The figures of all gradients together make the factors, and the gradients
    are edited in place. float64 is left to the reference.

    Args:
        gradients: Dense, real, non-empty floating-point tensors of any shape and strides, all on one device.
        eps: As for the reference.
        grad_scale: As for the reference.

    Returns:
        As the reference, on the gradients' device; in float32 where it has no float64.

    Example::

        >>> gradient = torch.tensor([1.0, 2.0, 3.0, 6.0])
        >>> mean, std, cosine = znorm_([gradient], eps=1e-10)
        >>> gradient
        tensor([-1.0690, -0.5345,  0.0000,  1.6036])

    """
    if any(gradient.dtype == torch.float64 for gradient in gradients):
        return _one_by_one(gradients, eps, grad_scale)
    moments = _measure(gradients)
    wide = _widest(gradients[0].device)
    scale = _scale(grad_scale, gradients[0].device)
    unit = moments.unit.to(wide)
    mean, std = moments.mean(), moments.std()
    is_single = to_device([gradient.numel() == 1 for gradient in gradients], torch.bool, gradients[0].device)
    is_left = is_single | ~std.isfinite()
    factor = torch.where(is_left, 1.0, torch.where(std == 0, 0.0, 1 / (std / scale + eps / unit)).float())
    inverse = torch.where(is_left, 1.0, moments.inverse)
    # 0 of either sign stays what it is if -0 is added
    high, low = [torch.where(is_left, -0.0, -part) for part in (moments.high, moments.low)]
    for gradient, *edit in zip(gradients, inverse, high, low * factor, factor, strict=True):
        values = gradient.float()  # the gradient itself if it is float32
        torch.addcmul(edit[1], values, edit[0], out=values)
        torch.addcmul(edit[2], values, edit[3], out=values)
        if values is not gradient:
            gradient.copy_(values)
    is_unchanged = is_left | ((mean == 0) & (std == 0))
    cosine = torch.where(is_unchanged, 1.0, std / (mean.square() + std.square()).sqrt())
    return torch.stack([mean * unit / scale, std * unit / scale, cosine])


def centralize_(gradients: Sequence[Tensor], grad_scale: Tensor | None = None) -> Tensor:
    """Do what :func:`lightning_znorm.backends.reference.centralize_` does, in float32.

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
    if any(gradient.dtype == torch.float64 for gradient in gradients):
        return reference.centralize_(gradients, grad_scale)
    moments = _measure(gradients)
    scale = _scale(grad_scale, gradients[0].device)
    unit = moments.unit.to(_widest(gradients[0].device))
    mean, std = moments.mean(), moments.std()
    norms = [
        _centralize_one_(gradient, moments, position)
        if gradient.ndim > 1 and gradient.numel() > len(gradient)
        else torch.full_like(moments.unit[position], torch.nan)
        for position, gradient in enumerate(gradients)
    ]
    # a projection: the inner product of before and after is the squared norm of after
    before = (moments.count * (mean.square() + std.square())).sqrt()
    cosine = (torch.stack(norms).to(before.dtype) / before).clamp(max=1.0)
    return torch.stack([mean * unit / scale, std * unit / scale, torch.where(cosine.isfinite(), cosine, 1.0)])


@dataclass(frozen=True)
class _Moments:
    """Of each gradient, in units of its own: all of shape ``(n,)``.

    Attributes:
        count: Number of elements.
        unit: A power of two near the largest absolute value.
        inverse: One over it.
        high: Mean in float32.
        low: What float32 lacks of it.
        squares: Sum of the squared deviations from it; inf or NaN if an element is.

    """

    count: Tensor
    unit: Tensor
    inverse: Tensor
    high: Tensor
    low: Tensor
    squares: Tensor

    def mean(self) -> Tensor:
        return self.high.to(self.squares.dtype) + self.low

    def std(self) -> Tensor:
        return (self.squares / self.count).sqrt()


def _measure(gradients: Sequence[Tensor]) -> _Moments:
    device = gradients[0].device
    wide = _widest(device)
    counts = [gradient.numel() for gradient in gradients]
    count = to_device(counts, wide, device)
    lowest, highest = torch.stack([torch.stack(torch.aminmax(gradient)).float() for gradient in gradients], dim=1)
    largest = torch.maximum(-lowest, highest)
    exponent = torch.where(largest.isfinite(), largest, 1.0).log2().floor().clamp(-126, 126).int()
    inverse = _power_of_two(-exponent)
    # relative to this, a constant gradient is exactly 0, and no element loses more digits than it has itself
    start = _nearest_to_zero(lowest, highest) * inverse
    means, rests, sums = [], [], []
    for gradient, factor, origin, elements in zip(gradients, inverse, start, counts, strict=True):
        values = in_order_of_memory(gradient.float() * factor)
        assert values is not None  # results have no gaps
        values.sub_(origin)
        means.append((_sum(values, wide) / elements).float())
        values.sub_(means[-1])
        rests.append(_sum(values, wide))
        sums.append(_sum(values.square_(), wide))
    rest = torch.stack(rests) / count
    squares = torch.stack(sums) - count * rest.square()
    high, low = _add_exactly(start, torch.stack(means))
    return _Moments(count, _power_of_two(exponent), inverse, high, low + rest.float(), squares.clamp(min=0.0))


def _centralize_one_(gradient: Tensor, moments: _Moments, position: int) -> Tensor:
    """Give each row a mean of zero, unless an element is inf or NaN; return the norm in the gradient's unit."""
    rows = tuple(range(1, gradient.ndim))
    values = gradient.float() * moments.inverse[position]
    values.sub_(_nearest_to_zero(values.amin(dim=rows, keepdim=True), values.amax(dim=rows, keepdim=True)))
    for _ in range(2):
        values.sub_(values.mean(dim=rows, keepdim=True))
    largest = torch.finfo(gradient.dtype).max
    result = values.mul(moments.unit[position]).clamp_(-largest, largest)
    gradient.copy_(torch.where(moments.squares[position].isfinite(), result, gradient))
    flat = in_order_of_memory(values.square_())
    assert flat is not None  # results have no gaps
    return _sum(flat, moments.squares.dtype).sqrt()


def _one_by_one(gradients: Sequence[Tensor], eps: float, grad_scale: Tensor | None) -> Tensor:
    own = [
        (reference.znorm_ if gradient.dtype == torch.float64 else znorm_)([gradient], eps, grad_scale)
        for gradient in gradients
    ]
    return torch.cat(own, dim=1)


def _sum(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the sum of a flat tensor, in a wider dtype between tiles."""
    whole = len(values) - len(values) % _TILE
    total = values[whole:].sum()
    if whole:
        total = torch.cat([values[:whole].view(-1, _TILE).sum(dim=1), total.view(1)]).sum(dtype=dtype)
    return total.to(dtype)


def _nearest_to_zero(lowest: Tensor, highest: Tensor) -> Tensor:
    return torch.zeros_like(lowest).clamp(lowest, highest)


def _power_of_two(exponent: Tensor) -> Tensor:
    """Return the power of an integer exponent by its bits, exact on every device."""
    return ((exponent + 127) << 23).view(torch.float32)


def _add_exactly(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rounded sum and its rounding error (Knuth's two-sum)."""
    total = first + second
    other = total - first
    return total, (first - (total - other)) + (second - other)


def _scale(grad_scale: Tensor | None, device: torch.device) -> Tensor | float:
    return 1.0 if grad_scale is None else grad_scale.to(device, _widest(device)).reshape(())


def _widest(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
