"""Memory in which small gradients lie side by side on a CPU, in whole pieces, and what is known from their shapes."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_znorm.backends._memory import PIECE, count_pieces

_COPIED = 1 << 14  # elements up to which two copies cost less than calls of PyTorch
_LARGE = 1 << 18  # elements above which calls of PyTorch cost little
_MEMORY = 1 << 20  # elements, padding included, that are copied together
_CACHED = 1 << 23  # elements that are measured before they are normalized, while they may still be in the cache

Key = tuple[tuple[torch.Size, ...], tuple[torch.dtype, ...]]


@dataclass(frozen=True)
class Batch:
    """Gradients that are treated together, first those that are copied, then float32 ones that stay where they are.

    Attributes:
        positions: Which ones of all gradients.
        views: A part of the memory for each copied gradient, of its shape.
        pieces: All of that memory, float32, with 128 elements per row; each gradient begins a row.
        owner: The number of the gradient of each row.
        starts: Where the rows, or the pieces, of each gradient begin among those of all.
        last: The last row of each copied gradient, ``None`` if it has no other.
        mask: 1 for an element of these rows, 0 for padding.
        count: The number of elements of each gradient.

    """

    positions: list[int]
    views: list[Tensor]
    pieces: Tensor
    owner: NDArray[np.int64]
    starts: NDArray[np.int64]
    last: Tensor | None
    mask: Tensor
    count: NDArray[np.float64]

    def subtract_(self, values: NDArray[np.float64]) -> None:
        """Subtract from each copied gradient its value, and keep its padding 0."""
        self.pieces.sub_(torch.from_numpy(values.astype(np.float32)[self.owner, None]))
        if self.last is None:
            self.pieces.mul_(self.mask)
            return
        self.pieces.index_copy_(0, self.last, self.pieces.index_select(0, self.last).mul_(self.mask))


@dataclass(frozen=True)
class Plan:
    """How gradients are treated.

    Attributes:
        batches: Those that are treated together.
        large: Positions of those that are treated one by one.
        single: Of those of one element.
        others: Of those that are not treated in float32: float64 and empty ones.

    """

    batches: list[Batch]
    large: list[int]
    single: list[int]
    others: list[int]


def plan(gradients: Sequence[Tensor]) -> Plan:
    """Return the plan for gradients of these shapes and dtypes; its memory is this thread's."""
    dtypes = {gradient.dtype for gradient in gradients}
    key = tuple(dtypes) if len(dtypes) == 1 else tuple([gradient.dtype for gradient in gradients])
    return _own.plan((tuple([gradient.shape for gradient in gradients]), key))


class _Own(threading.local):
    """What each thread has of its own."""

    def __init__(self) -> None:
        # the memory of a first step in inference mode must be valid in other modes, too
        with torch.inference_mode(False):
            self.memory = torch.empty(_MEMORY, dtype=torch.float32, device="cpu")
        self.plan = lru_cache(maxsize=64)(self._make_plan)

    def _make_plan(self, key: Key) -> Plan:
        shapes, dtypes = key
        if len(dtypes) == 1:
            dtypes *= len(shapes)
        sizes = [shape.numel() for shape in shapes]
        is_copied = [
            size <= (_COPIED if dtype == torch.float32 else _LARGE) for size, dtype in zip(sizes, dtypes, strict=True)
        ]
        together: list[int] = []
        large: list[int] = []
        single: list[int] = []
        others: list[int] = []
        for position, (size, dtype) in enumerate(zip(sizes, dtypes, strict=True)):
            if size == 1:
                single.append(position)
            elif not size or dtype == torch.float64:
                others.append(position)
            else:
                (together if size <= _LARGE else large).append(position)
        batches = [self._lay_out(batch, shapes, is_copied) for batch in _iterate_batches(together, sizes, is_copied)]
        return Plan(batches, large, single, others)

    def _lay_out(self, batch: list[int], shapes: Sequence[torch.Size], is_copied: Sequence[bool]) -> Batch:
        positions = sorted(batch, key=is_copied.__getitem__, reverse=True)
        sizes = [shapes[position].numel() for position in positions]
        rows = [
            -(-size // PIECE) if is_copied[position] else count_pieces(size)
            for position, size in zip(positions, sizes, strict=True)
        ]
        views: list[Tensor] = []
        stop = 0
        with torch.inference_mode(False), torch.device("cpu"):
            for position, size, more in zip(positions, sizes, rows, strict=True):
                if is_copied[position]:
                    views.append(self.memory[stop * PIECE : stop * PIECE + size].view(shapes[position]))
                    stop += more
            pieces = torch.tensor(rows)
            stops = pieces.cumsum(0)
            count = torch.tensor(sizes)
            mask = torch.arange(PIECE) <= ((count[: len(views)] - 1) % PIECE).unsqueeze(1)
            last = stops[: len(views)] - 1
            return Batch(
                positions,
                views,
                self.memory[: stop * PIECE].view(-1, PIECE),
                torch.arange(len(views)).repeat_interleave(pieces[: len(views)]).numpy(),
                (stops - pieces).numpy(),
                None if len(last) == stop else last,
                mask.to(torch.float32),
                count.double().numpy(),
            )


def _iterate_batches(positions: list[int], sizes: Sequence[int], is_copied: Sequence[bool]) -> Iterator[list[int]]:
    batch: list[int] = []
    copied = elements = 0
    for position in positions:
        padded = -(-sizes[position] // PIECE) * PIECE
        if batch and (copied + padded * is_copied[position] > _MEMORY or elements + padded > _CACHED):
            yield batch
            batch, copied, elements = [], 0, 0
        batch.append(position)
        copied += padded * is_copied[position]
        elements += padded
    if batch:
        yield batch


_own = _Own()
