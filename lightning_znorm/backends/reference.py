"""ZNorm in float64, one tensor at a time: the definition that every faster backend is tested against."""

from collections.abc import Sequence

import torch
from torch import Tensor


def znorm_(gradients: Sequence[Tensor], eps: float, grad_scale: Tensor | None = None) -> Tensor:
    r"""Replace each gradient by its z-score, in place.

    .. math::
        g \leftarrow \frac{g - \mu}{\sigma + \epsilon}, \qquad
        \mu = \frac{1}{d} \sum_i g_i, \qquad
        \sigma = \sqrt{\frac{1}{d} \sum_i (g_i - \mu)^2}

    All arithmetic is in float64 with one rounding at the end, and in units of a power of two near the largest element,
    so that squares neither overflow nor vanish. A gradient with one element or with an inf or NaN is left as it is; a
    constant gradient becomes exactly zero. There is no host synchronization, except on devices without float64, whose
    gradients take a detour through the CPU.

    Args:
        gradients: Dense, real, non-empty floating-point tensors of any shape and strides, all on one device.
        eps: Added to the standard deviation, in the units of the gradient.
        grad_scale: Tensor of one element by which the gradients are still multiplied, and by which the results are
            to be, too; ``eps`` and the statistics are those of the gradients without it.

    Returns:
        float64 tensor of shape ``(3, len(gradients))``: mean, standard deviation and the cosine between the gradient
        before and after, on the gradients' device (on the CPU for devices without float64).

    Example::

        >>> gradient = torch.tensor([1.0, 2.0, 3.0, 6.0])
        >>> mean, std, cosine = znorm_([gradient], eps=1e-10)
        >>> gradient
        tensor([-1.0690, -0.5345,  0.0000,  1.6036])
        >>> mean.item(), round(std.item(), 4), round(cosine.item(), 4)
        (3.0, 1.8708, 0.5292)

    """
    return torch.stack([_znorm_one_(gradient, eps, grad_scale) for gradient in gradients], dim=1)


def _znorm_one_(gradient: Tensor, eps: float, grad_scale: Tensor | None) -> Tensor:
    device = torch.device("cpu") if _lacks_float64(gradient.device) else gradient.device
    exact = gradient.to(device).to(torch.float64, copy=True)
    scale = None if grad_scale is None else grad_scale.to(device).double().reshape(())
    if scale is not None:
        exact.div_(scale)
    smallest, largest = torch.aminmax(exact)  # NaN if an element is
    magnitude = torch.maximum(-smallest, largest)
    unit = _power_of_two_below(magnitude)
    exact.div_(unit)
    # relative to the first element, a constant gradient is exactly 0 and its mean has no rounding error
    first = exact.flatten()[0].clone()
    offset = exact.sub_(first).mean()
    mean, std = first + offset, exact.sub_(offset).square().mean().sqrt()
    exact.div_(std + eps / unit)
    if scale is not None:
        exact.mul_(scale)

    untouched = ~magnitude.isfinite() if gradient.numel() > 1 else torch.ones_like(magnitude, dtype=torch.bool)
    gradient.copy_(torch.where(untouched, gradient.to(device), exact))

    # the z-score of an all-zero gradient is that gradient
    cosine = torch.where((mean == 0) & (std == 0), 1.0, std / torch.hypot(mean, std))
    return torch.stack([mean * unit, std * unit, torch.where(untouched, 1.0, cosine)])


def _power_of_two_below(value: Tensor) -> Tensor:
    """Return the largest power of two that is at most ``value``, so that dividing by it loses no bit."""
    exponent = torch.frexp(torch.where(value.isfinite() & (value > 0), value, 1.0)).exponent
    return torch.ldexp(torch.ones_like(value), exponent - 1)


def _lacks_float64(device: torch.device) -> bool:
    return device.type == "mps"
