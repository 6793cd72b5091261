"""Moments and z-score of many small gradients on a CPU at once: a call of PyTorch costs more than they do.

What is known of each gradient is in NumPy, whose calls cost a quarter of those of PyTorch.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_znorm._torch import copy_all_
from lightning_znorm.backends._memory import are_trusted, split_into_pieces
from lightning_znorm.backends._workspace import Batch

Values = NDArray[np.float64]  # one per gradient


def measure_together(batch: Batch, gradients: list[Tensor]) -> tuple[Tensor, list[int]]:
    """Return mean and variance of each gradient, and the numbers of those that are left to be measured alone."""
    with np.errstate(all="ignore"):
        offset, residual, variance, left = _load(batch, gradients)
        return torch.from_numpy(np.stack([residual + offset, variance])), sorted(left)


def normalize_together_(
    batch: Batch, gradients: list[Tensor], eps: float, scale: float, center: bool
) -> tuple[Tensor, list[int]]:
    """Normalize gradients in place.

    Args:
        batch: Made for gradients of these shapes and dtypes, in this order.
        gradients: Real tensors on the CPU.
        eps: Added to the standard deviation or root mean square.
        scale: Factor by which the gradients and the results are multiplied.
        center: Whether the mean is subtracted.

    Returns:
        Mean, standard deviation and cosine of each gradient, of shape ``(3, len(gradients))``; and the numbers of those
        that are left to be normalized alone.

    """
    copied, count = len(batch.views), len(gradients)
    statistics, edit = np.empty((3, count)), np.empty((2, count), dtype=np.float32)
    mean, std, cosine = statistics
    factor, shift = edit
    with np.errstate(all="ignore"):  # those that are left may have any variance
        offset, residual, variance, left = _load(batch, gradients)
        np.add(residual, offset, out=mean)
        np.sqrt(variance, out=std)
        length = np.hypot(mean, std)
        divisor = std if center else length
        factor[:] = np.where(divisor == 0, 1.0, scale / (divisor + eps * scale))  # of zeros, and of constants minus it
        # the mean is multiplied by the factor as rounded, so that only one rounding remains; adding -0 changes no 0
        shift[:] = -residual * factor if center else -0.0
        cosine[:] = np.where(length == 0, 1.0, std / length) if center else 1.0
        if scale != 1:
            statistics[:2] /= scale
    if copied:
        if not center and np.any(offset):
            copy_all_(batch.views, gradients[:copied])
        multiplier, addend = (torch.from_numpy(row[batch.owner, None]) for row in edit)
        batch.pieces.mul_(multiplier).add_(addend)  # `addcmul` takes longer than both
        edited = [pair for number, pair in enumerate(zip(gradients, batch.views, strict=False)) if number not in left]
        if edited:
            copy_all_(*map(list, zip(*edited, strict=True)))
    if copied < count:
        factors, shifts = factor[copied:].tolist(), torch.from_numpy(shift[copied:]).unbind()
        edits = zip(gradients[copied:], factors, shifts, strict=True)
        for number, (gradient, alpha, summand) in enumerate(edits, copied):
            if number not in left:
                torch.add(summand, gradient, alpha=alpha, out=gradient)
    return torch.from_numpy(statistics), sorted(left)


def _load(batch: Batch, gradients: list[Tensor]) -> tuple[Values | float, Values, Values, set[int]]:
    """Measure gradients, and copied ones whose variances are not trusted again, minus offsets near their means.

    Returns:
        Offsets; means without them; variances; the numbers of those whose variances are not trusted.

    """
    copied = len(batch.views)
    matrices = []
    if copied:
        batch.pieces.zero_()
        copy_all_(batch.views, gradients[:copied])
        matrices.append(batch.pieces)
    for gradient in gradients[copied:]:
        matrices += split_into_pieces(gradient)
    residual, variance = _measure(matrices, batch.starts, batch.count)
    is_trusted = are_trusted(residual, variance)
    if copied and not is_trusted.all():
        is_trusted[:copied] |= _are_zero(batch, (residual == 0) & (variance == 0))
    if is_trusted.all():
        return 0.0, residual, variance, set()
    offset = np.zeros_like(residual)
    if not is_trusted[:copied].all():
        # only of these, so that no gradient's result depends on its neighbours
        offset[:copied] = np.where(is_trusted, 0.0, residual)[:copied].astype(np.float32)
        batch.subtract_(offset[:copied])
        again = _measure([batch.pieces], batch.starts[:copied], batch.count[:copied])
        residual[:copied], variance[:copied] = again
        is_trusted |= are_trusted(residual, variance)
    if not is_trusted[:copied].all():
        first = batch.pieces[batch.starts[:copied], 0].double().numpy()
        first[is_trusted[:copied]] = 0.0
        batch.subtract_(first)
        is_constant = _are_zero(batch, ~is_trusted)
        offset[:copied][is_constant] += first[is_constant]
        residual[:copied][is_constant] = variance[:copied][is_constant] = 0.0
        is_trusted[:copied] |= is_constant
    return offset, residual, variance, set(np.flatnonzero(~is_trusted).tolist())


def _are_zero(batch: Batch, may_be: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which copied gradients have no element but 0, of those whose sums do not exclude it."""
    candidates = may_be[: len(batch.views)]
    if not candidates.any():
        return candidates
    has_other = np.logical_or.reduceat(batch.pieces.any(dim=1).numpy(), batch.starts[: len(batch.views)])
    return candidates & ~has_other


def _measure(matrices: list[Tensor], starts: NDArray[np.int64], count: Values) -> tuple[Values, Values]:
    """Return mean and variance of each gradient, from float32 sums of pieces that are joined in float64."""
    # both of one gradient in turn, while it is in the cache
    parts = [(matrix.sum(dim=1), torch.linalg.vector_norm(matrix, dim=1)) for matrix in matrices]
    sums, norms = zip(*parts, strict=True)
    values = torch.cat(sums + norms).numpy().reshape(2, -1).astype(np.float64)
    values[1] *= values[1]
    mean, square = np.add.reduceat(values, starts, axis=1) / count
    return mean, square - mean * mean
