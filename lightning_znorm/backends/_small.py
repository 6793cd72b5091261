"""Moments and z-score of many small gradients on a CPU at once: a call of PyTorch costs more than they do."""

import torch
from torch import Tensor

from lightning_znorm._torch import copy_all_
from lightning_znorm.backends._memory import (
    LARGEST_VARIANCE,
    SMALLEST_VARIANCE,
    are_trusted,
    split_into_pieces,
)
from lightning_znorm.backends._workspace import Batch


def measure_together(batch: Batch, gradients: list[Tensor]) -> tuple[Tensor, list[int]]:
    """Return mean and variance of each gradient, and the numbers of those that are left to be measured alone."""
    offset, residual, variance, left = _load(batch, gradients)
    return torch.stack([offset + residual, variance]), left


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
    offset, residual, variance, left = _load(batch, gradients)
    mean, std = offset + residual, variance.sqrt()
    length = torch.hypot(mean, std)
    factor = torch.add(std if center else length, eps * scale).reciprocal_()
    if scale != 1:
        factor.mul_(scale)
    factor = factor.float()
    # the mean is multiplied by the factor as rounded, so that only one rounding remains
    shift = residual.mul(factor).float() if center else torch.zeros_like(factor)
    if batch.views:
        if not center:
            copy_all_(batch.views, gradients[: len(batch.views)])
        batch.pieces.mul_(batch.spread(factor))
        if center:
            batch.pieces.sub_(batch.spread(shift))
        edited = [pair for number, pair in enumerate(zip(gradients, batch.views, strict=False)) if number not in left]
        if edited:
            copy_all_(*map(list, zip(*edited, strict=True)))
    _edit_in_place_(len(batch.views), gradients, factor, shift, left)
    statistics = torch.stack([mean, std, std / length if center else torch.ones_like(std)])
    if scale != 1:
        statistics[:2].div_(scale)
    return statistics, left


def _edit_in_place_(first: int, gradients: list[Tensor], factor: Tensor, shift: Tensor, left: list[int]) -> None:
    if first == len(gradients):
        return
    edits = zip(gradients[first:], factor[first:].tolist(), shift[first:].neg().unbind(), strict=True)
    for number, (gradient, multiplier, addend) in enumerate(edits, first):
        if number not in left:
            torch.add(addend, gradient, alpha=multiplier, out=gradient)


def _load(batch: Batch, gradients: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """Measure gradients, the copied ones minus offsets near their means.

    Returns:
        Offsets, means, variances, and the numbers of the gradients whose variances are not trusted.

    """
    copied = len(batch.views)
    offset = torch.zeros_like(batch.count, dtype=torch.float32)
    matrices = []
    if copied:
        batch.pieces.zero_()
        copy_all_(batch.views, gradients[:copied])
        offset.index_add_(0, batch.owner_of_rows, batch.pieces.sum(dim=1)).div_(batch.count_in_float32)
        batch.subtract_(offset)
        matrices.append(batch.pieces)
    for gradient in gradients[copied:]:
        matrices += split_into_pieces(gradient)
    residual, variance = _measure(batch, matrices)
    left: list[int] = []
    if not _are_all_trusted(residual, variance):
        left = are_trusted(residual, variance).logical_not().nonzero().flatten().tolist()
    return offset.double(), residual, variance, left


def _measure(batch: Batch, matrices: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return mean and variance of each gradient, from float32 sums of pieces that are joined in float64."""
    # both of one gradient in turn, while it is in the cache
    parts = [(matrix.sum(dim=1), torch.linalg.vector_norm(matrix, dim=1)) for matrix in matrices]
    sums, norms = zip(*parts, strict=True)
    values = torch.cat(sums + norms).double().view(2, -1)
    values[1].square_()
    joined = batch.zeros.index_add(0, batch.owner, values.view(-1)).view(2, -1)
    mean, square = joined.div_(batch.count).unbind()
    return mean, square.addcmul_(mean, mean, value=-1)


def _are_all_trusted(residual: Tensor, variance: Tensor) -> bool:
    """Return whether :func:`are_trusted` is true of all, in fewer calls."""
    smallest, largest = torch.aminmax(variance)
    distance = torch.addcmul(variance, residual, residual, value=-1).min()
    return smallest.item() > SMALLEST_VARIANCE and largest.item() < LARGEST_VARIANCE and distance.item() >= 0
