"""Gradient transforms in float64, one tensor at a time: what every faster backend is tested against."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_znorm.backends._memory import widest_dtype
from lightning_znorm.backends.moments import Moments, compute_edit


def measure(gradients: Sequence[Tensor]) -> Moments:
    r"""Return the number of elements, the mean and the sum of squared deviations of each gradient.

    .. math::
        d, \qquad \mu = \frac{1}{d} \sum_i g_i, \qquad S = \sum_i (g_i - \mu)^2

    Gradients that are still multiplied by a GradScaler's scale are measured with it.

    Args:
        gradients: At least one dense, real floating-point tensor of any shape and strides, all on one device.

    Returns:
        float64 tensors of shape ``(len(gradients),)``, on the gradients' device (on the CPU for devices without
        float64).

    Example::

        >>> moments = measure([torch.tensor([1.0, 2.0, 3.0, 6.0]), torch.empty(0)])
        >>> moments.count.tolist(), moments.mean.tolist(), moments.squares.tolist()
        ([4.0, 0.0], [3.0, 0.0], [14.0, 0.0])

    """
    return Moments(*measure_rows(gradients))


def measure_rows(gradients: Sequence[Tensor]) -> Tensor:
    """Return the moments as one tensor of shape ``(3, len(gradients))``."""
    return torch.stack([_measure_one(gradient) for gradient in gradients], dim=1)


def scale_(gradients: Sequence[Tensor], factor: Tensor) -> None:
    """Multiply all gradients by a factor, in place; NaN changes nothing."""
    factors = factor.double().expand(len(gradients))
    apply_(gradients, torch.zeros_like(factors), factors)


def norm(gradients: Sequence[Tensor], norm_type: float) -> Tensor:
    """Return the norm of all elements of all gradients, inf or NaN if one of them is.

    Args:
        gradients: As for :func:`measure`.
        norm_type: The exponent, a positive number or inf.

    """
    norms = [torch.linalg.vector_norm(_in_float64(gradient), norm_type) for gradient in gradients]
    return torch.linalg.vector_norm(torch.stack(norms), norm_type)  # type: ignore[no-any-return]


def apply_(gradients: Sequence[Tensor], mean: Tensor, factor: Tensor) -> None:
    r"""Subtract a number from each gradient and multiply by another, in place.

    .. math::
        g \leftarrow (g - \mu) \cdot f

    in float64 with one rounding at the end. A factor of NaN leaves every gradient unchanged, bit for bit (only a
    NaN may become another NaN). A result beyond the largest number of the gradient's dtype becomes that
    number.

    Args:
        gradients: Dense, real floating-point tensors of any shape and strides, all on one device.
        mean: The numbers to subtract, a float64 tensor of shape ``(len(gradients),)`` on the device of the moments.
        factor: The numbers to multiply by, a tensor of the same kind.

    Example::

        >>> gradient = torch.tensor([1.0, 2.0, 3.0, 6.0])
        >>> apply_([gradient], mean=torch.tensor([3.0]).double(), factor=torch.tensor([0.5]).double())
        >>> gradient
        tensor([-1.0000, -0.5000,  0.0000,  1.5000])

    """
    for gradient, subtracted, multiplier in zip(gradients, mean, factor, strict=True):
        values = _in_float64(gradient).sub_(subtracted).mul_(multiplier)
        _write_(gradient, values, ~multiplier.isnan())


def znorm_(gradients: Sequence[Tensor], eps: float, grad_scale: Tensor | None = None, center: bool = True) -> Tensor:
    r"""Replace each gradient by its z-score, in place.

    .. math::
        g \leftarrow \frac{g - \mu}{\sigma + \epsilon}, \qquad
        \mu = \frac{1}{d} \sum_i g_i, \qquad
        \sigma = \sqrt{\frac{1}{d} \sum_i (g_i - \mu)^2}

    or, without centring, divide it by its root mean square:

    .. math::
        g \leftarrow \frac{g}{\sqrt{\frac{1}{d} \sum_i g_i^2} + \epsilon}

    All arithmetic is in float64 with one rounding at the end, and in units of a power of two near the largest element,
    so that squares neither overflow nor vanish. A gradient with one element or with an inf or NaN stays unchanged; a
    constant gradient becomes exactly zero (without centring, 1 or -1 but for ``eps``, if it is not zero). There is no
    host synchronization, except on devices without float64, whose gradients are copied to the CPU and back.

    Args:
        gradients: Dense, real, non-empty floating-point tensors of any shape and strides, all on one device.
        eps: Added to the standard deviation or root mean square, in the units of the gradient.
        grad_scale: Tensor of one element by which the gradients are still multiplied, and by which the results are
            multiplied, too; ``eps`` and the statistics refer to the gradients without it.
        center: Whether the mean is subtracted.

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
    return torch.cat([_znorm_one_(gradient, eps, grad_scale, center) for gradient in gradients], dim=1)


def centralize_(gradients: Sequence[Tensor], grad_scale: Tensor | None = None) -> Tensor:
    r"""Subtract from each row of each gradient of two or more dimensions the mean of that row, in place.

    .. math::
        g_{i} \leftarrow g_{i} - \frac{1}{M} \sum_{j=1}^{M} g_{ij}

    with :math:`i` the index of dimension 0 and :math:`j` that of all other dimensions taken together. Arithmetic and
    non-finite values as in :func:`znorm_`. Gradients of fewer dimensions and rows of one element stay unchanged; a
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


def compute_statistics(gradients: Sequence[Tensor], near_zero: float, grad_scale: Tensor | None = None) -> Tensor:
    """Return statistics of each gradient, without editing it.

    Args:
        gradients: Dense, real, non-empty floating-point tensors of any shape and strides, all on one device.
        near_zero: Largest absolute value of an element that counts as near zero.
        grad_scale: Tensor of one element by which the gradients are still multiplied; the statistics are those of the
            gradients without it.

    Returns:
        float64 tensor of shape ``(4, len(gradients))``: L2 norm, mean, population standard deviation, and the share of
        elements near zero; NaN for gradients with an inf or NaN.

    Example::

        >>> compute_statistics([torch.tensor([3.0, 0.0, 0.0, -4.0])], near_zero=1e-8).tolist()
        [[5.0], [-0.25], [2.48746859276655], [0.5]]

    """
    return torch.stack([_compute_statistics_of_one(gradient, near_zero, grad_scale) for gradient in gradients], dim=1)


def compute_cosines(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Return the cosine of the angle between the gradients of each pair, at any scale.

    Args:
        first: Gradients as for :func:`compute_statistics`.
        second: Gradients of the same shapes.

    Returns:
        float64 tensor of shape ``(len(first),)``: 1 where both gradients are zero, 0 where one of them is, NaN where an
        element is inf or NaN.

    Example::

        >>> compute_cosines([torch.tensor([1.0, 0.0])], [torch.tensor([3e30, 3e30])])
        tensor([0.7071], dtype=torch.float64)

    """
    return torch.stack([_cosine(a, b) for a, b in zip(first, second, strict=True)])


@dataclass
class _ExactCopy:
    """A float64 copy of a gradient, divided by a GradScaler's scale and by ``unit``, a power of two."""

    values: Tensor
    unit: Tensor
    is_finite: Tensor
    scale: Tensor | None


def _copy_exactly(gradient: Tensor, grad_scale: Tensor | None = None) -> _ExactCopy:
    values = _in_float64(gradient)
    scale = None if grad_scale is None else grad_scale.to(values.device).double().reshape(())
    if scale is not None:
        values.div_(scale)
    smallest, largest = torch.aminmax(values)  # NaN if an element is
    magnitude = torch.maximum(-smallest, largest)
    unit = _power_of_two_below(magnitude)
    return _ExactCopy(values.div_(unit), unit, magnitude.isfinite(), scale)


def _in_float64(gradient: Tensor) -> Tensor:
    """Return a copy in float64."""
    device = torch.device("cpu") if widest_dtype(gradient.device) != torch.float64 else gradient.device
    return gradient.to(device).to(torch.float64, copy=True)


def _measure_one(gradient: Tensor) -> Tensor:
    values = _in_float64(gradient)
    if not values.numel():
        return values.new_zeros(3)
    mean = _center_(values)
    return torch.stack([torch.full_like(mean, values.numel()), mean, values.square_().sum()])


def _znorm_one_(gradient: Tensor, eps: float, grad_scale: Tensor | None, center: bool) -> Tensor:
    exact = _copy_exactly(gradient, grad_scale)
    mean, factor, statistics = compute_edit(measure([exact.values]), eps / exact.unit, center=center)
    apply_([exact.values], mean, factor)
    if exact.scale is not None:
        exact.values.mul_(exact.scale)
    _write_(gradient, exact.values, ~factor[0].isnan())
    statistics[:2].mul_(exact.unit)
    return statistics


def _centralize_one_(gradient: Tensor, grad_scale: Tensor | None) -> Tensor:
    exact = _copy_exactly(gradient, grad_scale)
    mean, std = _mean_and_std(exact.values)
    cosine = torch.ones_like(mean)
    if gradient.ndim > 1 and gradient.numel() > len(gradient):
        norm = exact.values.norm()
        # relative to its first element, a constant row is exactly 0
        exact.values.sub_(exact.values[:, *[slice(1)] * (gradient.ndim - 1)].clone())
        exact.values.sub_(exact.values.mean(dim=tuple(range(1, gradient.ndim)), keepdim=True))
        # a projection: the inner product of before and after is the squared norm of after
        cosine = torch.where(exact.is_finite & (norm > 0), exact.values.norm() / norm, 1.0)
        exact.values.mul_(exact.unit)
        if exact.scale is not None:
            exact.values.mul_(exact.scale)
        _write_(gradient, exact.values, exact.is_finite)
    return torch.stack([mean * exact.unit, std * exact.unit, cosine])


def _compute_statistics_of_one(gradient: Tensor, near_zero: float, grad_scale: Tensor | None) -> Tensor:
    exact = _copy_exactly(gradient, grad_scale)
    share = (exact.values.abs() <= near_zero / exact.unit).double().mean()
    mean, std = _mean_and_std(exact.values)
    norm = torch.hypot(mean, std) * gradient.numel() ** 0.5
    statistics = torch.stack([norm * exact.unit, mean * exact.unit, std * exact.unit, share])
    return torch.where(exact.is_finite, statistics, torch.nan)


def _cosine(first: Tensor, second: Tensor) -> Tensor:
    one, other = _copy_exactly(first).values, _copy_exactly(second).values
    norms = torch.stack([one.norm(), other.norm()])
    cosine = (one * other).sum() / norms.prod()
    cosine = torch.where((norms == 0).any(), (norms == 0).all().double(), cosine.clamp(-1, 1))
    return cosine + 0 * norms.sum()  # NaN if an element is inf or NaN


def _center_(values: Tensor) -> Tensor:
    """Subtract the mean in place, and return it."""
    # relative to the first element, a constant gradient is exactly 0 and its mean has no rounding error
    first = values.flatten()[0].clone()
    offset = values.sub_(first).mean()
    values.sub_(offset)
    return first + offset


def _mean_and_std(values: Tensor) -> tuple[Tensor, Tensor]:
    _, mean, squares = _measure_one(values)
    return mean, (squares / values.numel()).sqrt()


def _write_(gradient: Tensor, values: Tensor, is_edited: Tensor) -> None:
    """Round values to the gradient's dtype, never to inf, into the gradient's memory, if it is to be edited."""
    largest = torch.finfo(gradient.dtype).max
    gradient.copy_(torch.where(is_edited, values.clamp_(-largest, largest), gradient.to(values.device)))


def _power_of_two_below(value: Tensor) -> Tensor:
    """Return the largest power of two that is at most ``value``, so that dividing by it loses no bit."""
    exponent = torch.frexp(torch.where(value.isfinite() & (value > 0), value, 1.0)).exponent
    return torch.ldexp(torch.ones_like(value), exponent - 1)
