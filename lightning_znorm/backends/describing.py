"""Statistics of gradients before and after a transform, without editing them or waiting for the device."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_znorm.backends import reference
from lightning_znorm.backends._memory import to_device, view_in_memory_order, widest_dtype
from lightning_znorm.backends.choice import choose

_CHUNK = 1 << 22  # elements that are copied at once
_CHUNK_ON_CPU = 1 << 15  # two copies in float64 fit in the cache


def compare_gradients(
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    near_zero: float,
    first_scale: Tensor | None = None,
    second_scale: Tensor | None = None,
) -> Tensor:
    """Return the statistics of gradients before and after a transform.

    Means and standard deviations are those that the backend of the device measures. Products of elements are added, and
    elements are compared with ``near_zero``, in float64; from a device without float64, gradients are copied to the
    CPU. float64 gradients are left to the reference.

    Args:
        first: Dense, real, non-empty floating-point tensors of any shape and strides, all on one device.
        second: Gradients of the same shapes and dtypes on the same device.
        near_zero: Largest absolute value of an element that counts as near zero.
        first_scale: Tensor of one element by which ``first`` is still multiplied; the statistics are those of the
            gradients without it.
        second_scale: The same for ``second``.

    Returns:
        float64 tensor of shape ``(9, len(first))``, on the gradients' device if it has float64: L2 norm, mean,
        population standard deviation and share of elements near zero of ``first``, the same of ``second``, NaN for
        gradients with an inf or NaN; and the cosine of the angle between both, at any scale: 1 where both are zero, 0
        where one of them is, NaN where an element is inf or NaN.

    Example::

        >>> values = compare_gradients([torch.tensor([3.0, 0.0, 0.0, -4.0])], [torch.tensor([2.0, 0.0, 0.0, 0.0])], 0.5)
        >>> [round(value, 4) for value in values[:, 0].tolist()]
        [5.0, -0.25, 2.4875, 0.5, 2.0, 0.5, 0.866, 0.75, 0.6]

    """
    if widest_dtype(first[0].device) != torch.float64:
        first, second = ([gradient.cpu() for gradient in gradients] for gradients in (first, second))
    device = first[0].device
    is_wide = [gradient.dtype == torch.float64 for gradient in first]
    if not any(is_wide):
        return _compare(first, second, near_zero, first_scale, second_scale)
    values = torch.empty(9, len(first), dtype=torch.float64, device=device)
    for wide, compare in ((True, compare_exactly), (False, _compare)):
        positions = [position for position, found in enumerate(is_wide) if found is wide]
        if positions:
            pairs = [first[position] for position in positions], [second[position] for position in positions]
            columns = to_device(positions, torch.int64, device)
            values.index_copy_(1, columns, compare(*pairs, near_zero, first_scale, second_scale))
    return values


def compare_exactly(
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    near_zero: float,
    first_scale: Tensor | None = None,
    second_scale: Tensor | None = None,
) -> Tensor:
    """Compute :func:`compare_gradients` by :mod:`lightning_znorm.backends.reference`, in float64 throughout."""
    statistics = [
        reference.compute_statistics(first, near_zero, first_scale),
        reference.compute_statistics(second, near_zero, second_scale),
    ]
    return torch.cat([*statistics, reference.compute_cosines(first, second)[None]])


def _compare(
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    near_zero: float,
    first_scale: Tensor | None,
    second_scale: Tensor | None,
) -> Tensor:
    device, dtype = first[0].device, torch.float64
    sizes = to_device([gradient.numel() for gradient in first], dtype, device)
    norms, tables, limits = [], [], []
    for gradients, grad_scale in ((first, first_scale), (second, second_scale)):
        scale = torch.ones((), dtype=dtype, device=device) if grad_scale is None else grad_scale.to(device).double()
        mean, std, _ = choose(gradients).measure(gradients).statistics()
        norm = torch.hypot(mean, std) * sizes.sqrt()
        norms.append(norm.where(norm.isfinite(), math.nan))
        tables.append(torch.stack([norm, mean, std]) / scale)
        limits.append(near_zero * scale.reshape(()))
    inner, *near = _count(first, second, *limits)
    shares = torch.stack(near).unsqueeze(1) / sizes
    # 0 * NaN is NaN
    raw, received = (
        torch.cat([table, share]) + 0 * norm for table, share, norm in zip(tables, shares, norms, strict=True)
    )
    is_zero = torch.stack(norms) == 0
    cosine = (inner / norms[0] / norms[1]).clamp(-1.0, 1.0)
    cosine = torch.where(is_zero.any(dim=0), is_zero.all(dim=0).to(dtype), cosine) + 0 * (norms[0] + norms[1])
    return torch.cat([raw, received, cosine[None]])


def _count(first: Sequence[Tensor], second: Sequence[Tensor], first_limit: Tensor, second_limit: Tensor) -> Tensor:
    """Return the inner products of pairs of gradients, and the numbers of their elements within the limits."""
    device, dtype = first_limit.device, torch.float64
    chunk = _CHUNK_ON_CPU if device.type == "cpu" else _CHUNK
    inner, first_near, second_near, owner = [], [], [], []
    for position, pair in enumerate(zip(first, second, strict=True)):
        for parts in zip(*(flat.split(chunk) for flat in _flatten(*pair)), strict=True):
            one, other = (part.to(dtype, copy=True) for part in parts)
            inner.append(torch.dot(one, other))
            first_near.append((one.abs_() <= first_limit).count_nonzero())
            second_near.append((other.abs_() <= second_limit).count_nonzero())
            owner.append(position)
    values = torch.stack([torch.stack(column).to(dtype) for column in (inner, first_near, second_near)])
    return values.new_zeros(3, len(first)).index_add_(1, to_device(owner, torch.int64, device), values)


def _flatten(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return the elements of both in the same order, views if that is possible."""
    if first.stride() == second.stride():
        one, other = view_in_memory_order(first), view_in_memory_order(second)
        if one is not None and other is not None:
            return one, other
    return first.flatten(), second.flatten()
