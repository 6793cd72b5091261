"""The norm of all gradients together, and the factor that bounds it."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_znorm.backends.moments import Moments

_SMALLEST = 1e-6  # added to the norm, as `torch.nn.utils.clip_grad_norm_` does


def norm(gradients: Sequence[Tensor], moments: Moments, norm_type: float) -> Tensor:
    """Return the norm of gradients on one device, from their moments if it is the Euclidean one.

    Args:
        gradients: The gradients.
        moments: Theirs, by ``measure``.
        norm_type: The exponent, a positive number or inf.

    Returns:
        A tensor of no dimensions, float64, or float32 where the device lacks it; inf or NaN if an element is.

    Example::

        >>> from lightning_znorm.backends import reference
        >>> gradients = [torch.tensor([1.0, 2.0]), torch.tensor([2.0])]
        >>> [norm(gradients, reference.measure(gradients), p).item() for p in (1.0, 2.0, torch.inf)]
        [5.0, 3.0, 2.0]

    """
    if norm_type == 2.0:
        count, mean, squares = moments.values()
        return (squares + count * mean.square()).sum().sqrt()
    dtype = moments.mean.dtype
    return combine([torch.linalg.vector_norm(gradient, norm_type, dtype=dtype) for gradient in gradients], norm_type)


def combine(norms: Sequence[Tensor], norm_type: float) -> Tensor:
    """Return the norm of all, on the device of the first, from the norms of parts."""
    first = norms[0]
    joined = torch.stack([part.to(first.device, first.dtype) for part in norms])
    whole: Tensor = torch.linalg.vector_norm(joined, norm_type)
    return whole


def bound(norm: Tensor, max_norm: float, scale: Tensor | float = 1.0) -> Tensor:
    """Return the factor for ``apply_`` that brings gradients of this norm to ``max_norm`` at most.

    Args:
        norm: Of the gradients as they are.
        max_norm: What it may be without the scale.
        scale: By which the gradients are multiplied.

    Returns:
        A factor of at most 1; NaN, for gradients that are to be left alone, if the norm is inf or NaN.

    Example::

        >>> bound(torch.tensor(4.0), max_norm=1.0), bound(torch.tensor(0.5), max_norm=1.0)
        (tensor(0.2500), tensor(1.))

    """
    factor = (max_norm / (norm / scale + _SMALLEST)).clamp(max=1.0)
    return torch.where(norm.isfinite(), factor, torch.nan)


def scale_(
    gradients: Sequence[Tensor],
    moments: Moments,
    factor: Tensor,
    apply_: Callable[[Sequence[Tensor], Tensor, Tensor], None],
) -> None:
    """Multiply all gradients on one device by a factor, in place, with the verb of the backend of these moments."""
    zeros = torch.zeros_like(moments.mean)
    factors = zeros.clone()
    factors.view(-1, len(gradients))[0] = factor.to(zeros)
    apply_(gradients, zeros, factors)
