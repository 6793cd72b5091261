"""Gradient transforms in float64, one tensor at a time: what every faster backend is tested against."""

from collections.abc import Sequence
from dataclasses import dataclass

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


def centralize_(gradients: Sequence[Tensor], grad_scale: Tensor | None = None) -> Tensor:
    r"""Subtract from each row of each gradient of two or more dimensions the mean of that row, in place.

    .. math::
        g_{i} \leftarrow g_{i} - \frac{1}{M} \sum_{j=1}^{M} g_{ij}

    with :math:`i` the index of dimension 0 and :math:`j` that of all other dimensions taken together. Arithmetic and
    non-finite values as in :func:`znorm_`. Gradients of fewer dimensions and rows of one element stay as they are; a
    constant row becomes exactly zero. A result beyond the largest number of the gradient's dtype becomes that number.

    Args:
        gradients: Dense, real, non-empty floating-point tensors of any shape and strides, all on one device.
        grad_scale: Tensor of one element by which the gradients are still multiplied, and with them the results; the
            statistics are those of the gradients without it.

    Returns:
        float64 tensor of shape ``(3, len(gradients))`` as from :func:`znorm_`.

    Example::

        >>> gradient = torch.tensor([[1.0, 2.0, 6.0], [5.0, 5.0, 5.0]])
        >>> mean, std, cosine = centralize_([gradient])
        >>> gradient
        tensor([[-2., -1.,  3.],
                [ 0.,  0.,  0.]])

    """
    return torch.stack([_centralize_one_(gradient, grad_scale) for gradient in gradients], dim=1)


def describe(gradients: Sequence[Tensor], near_zero: float, grad_scale: Tensor | None = None) -> Tensor:
    """Return figures of each gradient, which stays as it is.

    Args:
        gradients: Dense, real, non-empty floating-point tensors of any shape and strides, all on one device.
        near_zero: Largest absolute value of an element that counts as near zero.
        grad_scale: Tensor of one element by which the gradients are still multiplied; the figures are those of the
            gradients without it.

    Returns:
        float64 tensor of shape ``(4, len(gradients))``: L2 norm, mean, population standard deviation, and the share of
        elements near zero; NaN for gradients with an inf or NaN.

    Example::

        >>> describe([torch.tensor([3.0, 0.0, 0.0, -4.0])], near_zero=1e-8).tolist()
        [[5.0], [-0.25], [2.48746859276655], [0.5]]

    """
    return torch.stack([_describe_one(gradient, near_zero, grad_scale) for gradient in gradients], dim=1)


def cosines(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Return the cosine of the angle between each two gradients, whatever their scales.

    Args:
        first: Gradients as for :func:`describe`.
        second: As many, of the same shapes.

    Returns:
        float64 tensor of shape ``(len(first),)``: 1 where both gradients are zero, 0 where one of them is, NaN where an
        element is inf or NaN.

    Example::

        >>> cosines([torch.tensor([1.0, 0.0])], [torch.tensor([3e30, 3e30])])
        tensor([0.7071], dtype=torch.float64)

    """
    return torch.stack([_cosine(a, b) for a, b in zip(first, second, strict=True)])


@dataclass
class _Exact:
    """A float64 copy of a gradient, divided by a GradScaler's scale and by ``unit``, a power of two."""

    values: Tensor
    unit: Tensor
    is_finite: Tensor
    scale: Tensor | None


def _exact(gradient: Tensor, grad_scale: Tensor | None = None) -> _Exact:
    device = torch.device("cpu") if _lacks_float64(gradient.device) else gradient.device
    values = gradient.to(device).to(torch.float64, copy=True)
    scale = None if grad_scale is None else grad_scale.to(device).double().reshape(())
    if scale is not None:
        values.div_(scale)
    smallest, largest = torch.aminmax(values)  # NaN if an element is
    magnitude = torch.maximum(-smallest, largest)
    unit = _power_of_two_below(magnitude)
    return _Exact(values.div_(unit), unit, magnitude.isfinite(), scale)


def _znorm_one_(gradient: Tensor, eps: float, grad_scale: Tensor | None) -> Tensor:
    exact = _exact(gradient, grad_scale)
    mean, std = _center_(exact.values)
    # of a constant gradient eps alone would be left, which may be too small to divide 0 by
    exact.values.div_(torch.where(std == 0, 1.0, std + eps / exact.unit))
    touched = exact.is_finite if gradient.numel() > 1 else torch.zeros_like(exact.is_finite)
    _write_(gradient, exact, touched)
    # the z-score of an all-zero gradient is that gradient
    cosine = torch.where((mean == 0) & (std == 0), 1.0, std / torch.hypot(mean, std))
    return torch.stack([mean * exact.unit, std * exact.unit, torch.where(touched, cosine, 1.0)])


def _centralize_one_(gradient: Tensor, grad_scale: Tensor | None) -> Tensor:
    exact = _exact(gradient, grad_scale)
    mean, std = _center_(exact.values.clone())
    cosine = torch.ones_like(mean)
    if gradient.ndim > 1 and gradient.numel() > len(gradient):
        norm = exact.values.norm()
        # relative to its first element, a constant row is exactly 0
        exact.values.sub_(exact.values[:, *[slice(1)] * (gradient.ndim - 1)].clone())
        exact.values.sub_(exact.values.mean(dim=tuple(range(1, gradient.ndim)), keepdim=True))
        # a projection: the inner product of before and after is the squared norm of after
        cosine = torch.where(exact.is_finite & (norm > 0), exact.values.norm() / norm, 1.0)
        exact.values.mul_(exact.unit)
        _write_(gradient, exact, exact.is_finite)
    return torch.stack([mean * exact.unit, std * exact.unit, cosine])


def _describe_one(gradient: Tensor, near_zero: float, grad_scale: Tensor | None) -> Tensor:
    exact = _exact(gradient, grad_scale)
    share = (exact.values.abs() <= near_zero / exact.unit).double().mean()
    mean, std = _center_(exact.values)
    norm = torch.hypot(mean, std) * gradient.numel() ** 0.5
    figures = torch.stack([norm * exact.unit, mean * exact.unit, std * exact.unit, share])
    return torch.where(exact.is_finite, figures, torch.nan)


def _cosine(first: Tensor, second: Tensor) -> Tensor:
    one, other = _exact(first).values, _exact(second).values
    norms = torch.stack([one.norm(), other.norm()])
    cosine = (one * other).sum() / norms.prod()
    return torch.where((norms == 0).any(), (norms == 0).all().double(), cosine.clamp(-1, 1))


def _center_(values: Tensor) -> tuple[Tensor, Tensor]:
    """Subtract the mean in place; return the mean and the standard deviation of before."""
    # relative to the first element, a constant gradient is exactly 0 and its mean has no rounding error
    first = values.flatten()[0].clone()
    offset = values.sub_(first).mean()
    std = values.sub_(offset).square().mean().sqrt()
    return first + offset, std


def _write_(gradient: Tensor, exact: _Exact, touched: Tensor) -> None:
    """Round the result to the gradient's dtype, never to inf, into the gradient's memory, if it is to be touched."""
    if exact.scale is not None:
        exact.values.mul_(exact.scale)
    largest = torch.finfo(gradient.dtype).max
    exact.values.clamp_(-largest, largest)
    gradient.copy_(torch.where(touched, exact.values, gradient.to(exact.values.device)))


def _power_of_two_below(value: Tensor) -> Tensor:
    """Return the largest power of two that is at most ``value``, so that dividing by it loses no bit."""
    exponent = torch.frexp(torch.where(value.isfinite() & (value > 0), value, 1.0)).exponent
    return torch.ldexp(torch.ones_like(value), exponent - 1)


def _lacks_float64(device: torch.device) -> bool:
    return device.type == "mps"
