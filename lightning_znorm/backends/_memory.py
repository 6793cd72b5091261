"""Helpers that the backends share."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

Statistics = tuple[float, float, float]  # mean, standard deviation, cosine

# float32 represents the squares of all elements that matter to a variance between these
SMALLEST_VARIANCE, LARGEST_VARIANCE = 1e-30, 1e30
# elements whose squares are summed in float32: PyTorch adds those of a SIMD lane one after the other, and the rounding
# errors of equal ones add up. With 128 elements in 8 lanes, the error of a norm is at most 9e-7
PIECE = 128


def are_trusted(residual: Any, variance: Any) -> Any:
    """Return whether a variance from sums of squares in float32 is as exact as the sums are.

    Args:
        residual: Mean of the squared elements before they were squared, a float or a tensor.
        variance: Mean of the squares minus the square of the mean.

    """
    return (residual * residual <= variance) & (variance > SMALLEST_VARIANCE) & (variance < LARGEST_VARIANCE)


@lru_cache(maxsize=1024)
def choose_width(count: int, limit: int) -> int:
    """Return the widest tile between half the limit and the limit that divides a number of elements, else the limit."""
    widths = range(min(limit, count), limit // 2, -1)
    return next((width for width in widths if count % width == 0), min(limit, count))


def add_squares(rows: Tensor) -> Tensor:
    """Return the sum of the squares of each row of a float32 matrix, in float64 between pieces."""
    count = rows.shape[1]
    width = choose_width(count, PIECE)
    remainder = count % width
    pieces = (rows[:, :-remainder] if remainder else rows).view(len(rows), -1, width)
    norms = torch.linalg.vector_norm(pieces, dim=2)
    squares: Tensor = torch.linalg.vector_norm(norms, dim=1, dtype=torch.float64).square_()
    if remainder:
        squares += torch.linalg.vector_norm(rows[:, -remainder:], dim=1).double().square_()
    return squares


def split_into_pieces(tensor: Tensor) -> list[Tensor]:
    """Return the elements as one or two matrices with rows of at most ``PIECE`` elements, views if that is possible."""
    count = tensor.numel()
    width = choose_width(count, PIECE)
    remainder = count % width
    if not remainder and tensor.is_contiguous():
        return [tensor.view(-1, width)]
    flat = view_in_memory_order(tensor)
    if flat is None:
        flat = tensor.flatten()
    if not remainder:
        return [flat.view(-1, width)]
    return [flat[:-remainder].view(-1, width), flat[-remainder:].view(1, -1)]


def count_pieces(count: int) -> int:
    """Return the number of rows that :func:`split_into_pieces` makes."""
    return -(-count // choose_width(count, PIECE))


def view_in_memory_order(tensor: Tensor) -> Tensor | None:
    """Return a flat view of a tensor that fills its memory without gaps, ``None`` for any other tensor.

    Example::

        >>> import torch
        >>> view_in_memory_order(torch.tensor([[1, 2], [3, 4]]).t())
        tensor([1, 2, 3, 4])
        >>> view_in_memory_order(torch.arange(6)[::2]) is None
        True

    """
    if tensor.is_contiguous():
        return tensor if tensor.ndim == 1 else tensor.view(-1)
    order = sorted(range(tensor.ndim), key=lambda dim: (-tensor.stride()[dim], tensor.shape[dim] == 1))
    ordered = tensor.permute(order)
    return ordered.view(-1) if ordered.is_contiguous() else None


def has_no_gaps(tensor: Tensor) -> bool:
    """Return whether a tensor fills its memory without gaps, in any order of dimensions."""
    return tensor.is_contiguous() or view_in_memory_order(tensor) is not None


@lru_cache
def widest_dtype(device: torch.device) -> torch.dtype:
    """Return float64, or float32 if the device does not compute in it (MPS, some of XPU)."""
    if device.type in ("cpu", "cuda", "meta"):
        return torch.float64
    try:
        torch.ones(2, dtype=torch.float64, device=device).sum()
    except (RuntimeError, TypeError):
        return torch.float32
    return torch.float64


_captured_tables: list[Tensor] = []  # the sources of copies in captured graphs, which read them at every replay


def to_device(values: Sequence[float] | Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Copy a few values to a device, without waiting if it is a GPU."""
    # not on the default device, which may be a different one
    table = torch.as_tensor(values, dtype=dtype, device="cpu")
    if device.type != "cuda":
        return table.to(device)
    # always new memory, which the allocator reuses only after the copy
    pinned = table.pin_memory()
    if torch.cuda.is_current_stream_capturing():
        _captured_tables.append(pinned)
    return pinned.to(device, non_blocking=True)
