"""The norm of all gradients together on a CPU, and their multiplication by the factor that bounds it."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_znorm._torch import multiply_all_
from lightning_znorm.backends import clipping, reference
from lightning_znorm.backends._memory import PIECE, SMALLEST_VARIANCE, view_in_memory_order

_SMALL = 1 << 14  # gradients of at most so many elements are joined: a call costs more than a copy
_CHUNK = 1 << 19  # largest number of copied elements
_SMALLEST_FACTOR = 1e-30  # in float32


def norm(gradients: Sequence[Tensor], norm_type: float) -> Tensor:
    """Compute :func:`lightning_znorm.backends.reference.norm`, the Euclidean norm in one pass over float32.

    Squares are summed in float32 within pieces of 128 elements, and in float64 between pieces, which may span
    gradients. Gradients whose squares float32 cannot represent are left to the reference, and so are inf and NaN.

    Args:
        gradients: As for the reference, non-empty and on the CPU.
        norm_type: As for the reference.

    Example::

        >>> gradients = [torch.tensor([1.0, 2.0]), torch.tensor([2.0])]
        >>> [norm(gradients, p).item() for p in (1.0, 2.0, torch.inf)]
        [5.0, 3.0, 2.0]

    """
    if norm_type != 2 or any(gradient.dtype == torch.float64 for gradient in gradients):
        return clipping.norm(gradients, norm_type)
    norms = [part for flat in _in_float32(gradients) for part in _norms_of_pieces(flat)]
    total: Tensor = torch.linalg.vector_norm(torch.cat(norms), dtype=torch.float64)
    count = sum(gradient.numel() for gradient in gradients)
    is_trusted = SMALLEST_VARIANCE * count < total.item() ** 2 < math.inf
    return total if is_trusted else reference.norm(gradients, norm_type)


def scale_(gradients: Sequence[Tensor], factor: Tensor) -> None:
    """Multiply all gradients by a factor, in place, in float32 where that is exact enough; NaN changes nothing.

    Example::

        >>> gradients = [torch.tensor([1.0, 2.0]), torch.tensor([2.0], dtype=torch.bfloat16)]
        >>> scale_(gradients, torch.tensor(0.5))
        >>> gradients
        [tensor([0.5000, 1.0000]), tensor([1.], dtype=torch.bfloat16)]

    """
    if factor.isnan() or factor == 1:
        return
    if factor < _SMALLEST_FACTOR:
        factors = factor.double().expand(len(gradients))
        reference.apply_(gradients, torch.zeros_like(factors), factors)
        return
    for dtype in {gradient.dtype for gradient in gradients}:
        # a number, or a tensor of a half-precision dtype, would be rounded; other dtypes take longer
        members = [gradient for gradient in gradients if gradient.dtype == dtype]
        multiply_all_(members, factor.to(torch.promote_types(dtype, torch.float32)))


def _in_float32(gradients: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield all elements in flat tensors, those of small gradients together."""
    small: list[Tensor] = []
    elements = 0
    for gradient in gradients:
        flat = view_in_memory_order(gradient)
        if flat is None:
            flat = gradient.flatten()
        size = flat.numel()
        if size > _SMALL:
            yield from (flat,) if flat.dtype == torch.float32 else map(Tensor.float, flat.split(_CHUNK))
            continue
        if elements + size > _CHUNK:
            yield torch.cat(small).float()
            small, elements = [], 0
        small.append(flat)
        elements += size
    if small:
        yield torch.cat(small).float()


def _norms_of_pieces(flat: Tensor) -> Iterator[Tensor]:
    remainder = flat.numel() % PIECE
    if remainder:
        yield torch.linalg.vector_norm(flat[-remainder:], dim=0, keepdim=True)
    pieces = flat[:-remainder] if remainder else flat  # a view costs as much as the norm of a small gradient
    if pieces.numel():
        yield torch.linalg.vector_norm(pieces.view(-1, PIECE), dim=1)
