"""The norm of all gradients together, and the factor that bounds it, without waiting for a device."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_znorm._torch import multiply_all_, norm_all
from lightning_znorm.backends._memory import widest_dtype

_SMALLEST = 1e-6  # added to the norm, as `torch.nn.utils.clip_grad_norm_` does


def norm(gradients: Sequence[Tensor], norm_type: float) -> Tensor:
    """Return the norm of gradients on one device.

    Args:
        gradients: Dense, real, non-empty floating-point tensors of any shape and strides, all on one device.
        norm_type: The exponent, a positive number or inf.

    Returns:
        A tensor of no dimensions, float64, or float32 where the device lacks it; inf or NaN if an element is.

    Example::

        >>> gradients = [torch.tensor([1.0, 2.0]), torch.tensor([2.0])]
        >>> [norm(gradients, p).item() for p in (1.0, 2.0, torch.inf)]
        [5.0, 3.0, 2.0]

    """
    return combine(norm_all(gradients, norm_type, widest_dtype(gradients[0].device)), norm_type)


def combine(norms: Sequence[Tensor], norm_type: float) -> Tensor:
    """Return the norm of all gradients from the norms of parts, on the device of the first part."""
    first = norms[0]
    joined = torch.stack([norm.to(first.device, first.dtype) for norm in norms])
    total: Tensor = torch.linalg.vector_norm(joined, norm_type)
    return total


def bound(norm: Tensor, max_norm: float, scale: Tensor | float = 1.0) -> Tensor:
    """Return the factor that brings gradients of this norm to ``max_norm`` at most.

    Args:
        norm: Norm of the gradients, multiplied by the scale.
        max_norm: Largest norm without the scale.
        scale: Factor by which the gradients are multiplied.

    Returns:
        A factor of at most 1; NaN, which leaves gradients unchanged, if the norm is inf or NaN.

    Example::

        >>> bound(torch.tensor(4.0), max_norm=1.0), bound(torch.tensor(0.5), max_norm=1.0)
        (tensor(0.2500), tensor(1.))

    """
    factor = (max_norm / (norm / scale + _SMALLEST)).clamp(max=1.0)
    return torch.where(norm.isfinite(), factor, torch.nan)


def scale_(gradients: Sequence[Tensor], factor: Tensor) -> None:
    """Multiply all gradients on one device by a factor, in place; NaN leaves them unchanged.

    The arithmetic is float32 where that is exact enough, and the result is rounded once. Factors below the smallest
    normal number of float32 lose digits.

    Example::

        >>> gradients = [torch.tensor([1.0, 2.0]), torch.tensor([2.0], dtype=torch.bfloat16)]
        >>> scale_(gradients, torch.tensor(0.5))
        >>> gradients
        [tensor([0.5000, 1.0000]), tensor([1.], dtype=torch.bfloat16)]

    """
    factor = torch.where(factor.isnan(), 1.0, factor)
    for dtype in {gradient.dtype for gradient in gradients}:
        members = [gradient for gradient in gradients if gradient.dtype == dtype]
        if dtype.itemsize >= 4:
            multiply_all_(members, factor.to(dtype))
            continue
        for gradient in members:  # in one call, CUDA would round the factor to the dtype
            gradient.copy_(gradient.float().mul_(factor.float()))
