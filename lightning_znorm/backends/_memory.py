"""What the backends share."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

Figures = tuple[float, float, float]  # mean, standard deviation, cosine

# float32 holds the squares of all elements that matter to a variance between these
SMALLEST_VARIANCE, LARGEST_VARIANCE = 1e-30, 1e30
# elements whose squares are added in float32: PyTorch adds those of each SIMD lane one after the other, and equal ones
# are all rounded the same way. Of 128, with 8 lanes, a norm is good to 9e-7 whatever they are
PIECE = 128


def are_trusted(rest: Any, variance: Any) -> Any:
    """Say whether a variance from sums of squares in float32 is as exact as the sums are.

    Args:
        rest: Mean of what was squared, a float or a tensor.
        variance: Mean of the squares without the square of the mean.

    """
    return (rest * rest <= variance) & (variance > SMALLEST_VARIANCE) & (variance < LARGEST_VARIANCE)


@lru_cache(maxsize=1024)
def choose_width(count: int, widest: int) -> int:
    """Return the widest tile that divides a number of elements, the widest of all if those are all narrow."""
    widths = range(min(widest, count), widest // 2, -1)
    return next((width for width in widths if count % width == 0), min(widest, count))


def add_squares(rows: Tensor) -> Tensor:
    """Return the sum of the squares of each row of a float32 matrix, in float64 between pieces."""
    count = rows.shape[1]
    width = choose_width(count, PIECE)
    rest = count % width
    pieces = (rows[:, :-rest] if rest else rows).view(len(rows), -1, width)
    norms = torch.linalg.vector_norm(pieces, dim=2)
    squares: Tensor = torch.linalg.vector_norm(norms, dim=1, dtype=torch.float64).square_()
    if rest:
        squares += torch.linalg.vector_norm(rows[:, -rest:], dim=1).double().square_()
    return squares


def in_order_of_memory(tensor: Tensor) -> Tensor | None:
    """Return a flat view of a tensor that fills its memory without gaps, ``None`` of any other.

    Example::

        >>> import torch
        >>> in_order_of_memory(torch.tensor([[1, 2], [3, 4]]).t())
        tensor([1, 2, 3, 4])
        >>> in_order_of_memory(torch.arange(6)[::2]) is None
        True

    """
    if tensor.is_contiguous():
        return tensor if tensor.ndim == 1 else tensor.view(-1)
    order = sorted(range(tensor.ndim), key=lambda dim: (-tensor.stride()[dim], tensor.shape[dim] == 1))
    ordered = tensor.permute(order)
    return ordered.view(-1) if ordered.is_contiguous() else None


def has_no_gaps(tensor: Tensor) -> bool:
    """Say whether a tensor fills its memory, in whatever order."""
    return tensor.is_contiguous() or in_order_of_memory(tensor) is not None


_kept: list[Tensor] = []  # what captured graphs will copy from whenever they are replayed


def to_device(values: Sequence[float] | Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Copy a few values to a device, without waiting if it is a GPU."""
    # not on the default device, which may be another
    table = torch.as_tensor(values, dtype=dtype, device="cpu")
    if device.type != "cuda":
        return table.to(device)
    # of fresh memory each time: the allocator does not give it away before the copy is done
    staged = table.pin_memory()
    if torch.cuda.is_current_stream_capturing():
        _kept.append(staged)
    return staged.to(device, non_blocking=True)
