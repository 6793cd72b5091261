"""Gradients side by side in a few matrices of equal rows, so that one operation serves all of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from lightning_znorm._torch import copy_all_
from lightning_znorm.backends._memory import to_device, view_in_memory_order
from lightning_znorm.backends._segments import from_fields, tabulate

_BUCKET = 1 << 24  # elements
_WIDTHS = (1024, 256, 64, 16)
_COST_OF_A_TILE = 64  # in elements


class Tiles:
    """Tiles of the rows of gradients: first the full ones, then the last of each row whose length leaves a remainder.

    Args:
        gradients: Dense, non-empty gradients on one device.
        dtype: The widest floating-point type of the device.
        by_row: Whether the rows are those of dimension 0; otherwise each gradient is one row.

    Attributes:
        dtype: The same.
        device: That of the gradients.
        flats: The elements of each gradient, row after row; a copy if they do not lie so in memory.
        rows: Which tiles make up each row.
        gradients: Which rows make up each gradient; without ``by_row``, as many.

    """

    def __init__(self, gradients: Sequence[Tensor], dtype: torch.dtype, by_row: bool = False) -> None:
        shapes = [_shape_in_rows(gradient) if by_row else (1, gradient.numel()) for gradient in gradients]
        views = [_view(gradient, shape) for gradient, shape in zip(gradients, shapes, strict=True)]
        pairs = list(zip(gradients, views, strict=True))
        self.flats = [gradient.contiguous().view(-1) if view is None else view for gradient, view in pairs]
        self._strided = [position for position, view in enumerate(views) if view is None]
        self._gradients, self.dtype, self.device = gradients, dtype, gradients[0].device
        self._plan = _make_plan(tuple(shapes), _BUCKET, dtype)
        packed = to_device(self._plan.table, self._plan.table.dtype, self.device)
        parts = packed.split([shape.numel() for shape in self._plan.shapes])
        positions, *fields = [part.view(shape) for part, shape in zip(parts, self._plan.shapes, strict=True)]
        self._positions = positions.view(dtype)
        self.rows = from_fields(fields[: self._plan.fields_of_rows], dtype)
        self.gradients = from_fields(fields[self._plan.fields_of_rows :], dtype) if by_row else self.rows

    def __len__(self) -> int:
        return len(self.rows.owner)

    def read(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield the range and a float32 copy of the tiles in each bucket, in the same memory one after the other."""
        return self._iterate(is_written=False)

    def edit(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield the same, and write each copy back after the loop's body has edited it."""
        yield from self._iterate(is_written=True)
        for position in self._strided:
            self._gradients[position].copy_(self.flats[position].view(self._gradients[position].shape))

    def find_padding(self, span: slice) -> Tensor | None:
        """Return where the last of these tiles, those that are not full, have no elements."""
        count = self.rows.count[max(span.start, self._plan.full_tiles) : span.stop]
        return self._positions >= count.unsqueeze(1) if len(count) else None

    def _iterate(self, is_written: bool) -> Iterator[tuple[slice, Tensor]]:
        width = self._plan.width
        longest = max(bucket.stop - bucket.start for bucket in self._plan.buckets)
        memory = torch.empty(longest * width, dtype=torch.float32, device=self.device)
        for bucket in self._plan.buckets:
            # one strided pair, or a second dtype, would make foreach copy each pair separately
            pairs: dict[tuple[torch.dtype, bool], tuple[list[Tensor], list[Tensor]]] = {}
            for piece in bucket.pieces:
                flat = self.flats[piece.gradient]
                copies, sources = pairs.setdefault((flat.dtype, piece.rows > 1), ([], []))
                size = (piece.rows, piece.length)
                copies.append(memory.as_strided(size, (piece.stride_of_copy, 1), piece.start_of_copy))
                sources.append(flat.as_strided(size, (piece.stride, 1), flat.storage_offset() + piece.start))
            for copies, sources in pairs.values():
                copy_all_(copies, sources)
            yield slice(bucket.start, bucket.stop), memory[: (bucket.stop - bucket.start) * width].view(-1, width)
            if is_written:
                for copies, sources in pairs.values():
                    copy_all_(sources, copies)


def _shape_in_rows(gradient: Tensor) -> tuple[int, int]:
    """Return number and length of the rows of dimension 0, one row if they had one element each."""
    count = gradient.numel()
    return (len(gradient), count // len(gradient)) if gradient.ndim > 1 and count > len(gradient) else (1, count)


def _view(gradient: Tensor, shape: tuple[int, int]) -> Tensor | None:
    """Return a view with one row after the other, each in any order, if there is one."""
    flat = view_in_memory_order(gradient)
    return flat if shape[0] == 1 or gradient.stride(0) == shape[1] else None


@dataclass(frozen=True)
class _Piece:
    gradient: int
    rows: int
    length: int
    start: int
    stride: int
    start_of_copy: int
    stride_of_copy: int


@dataclass(frozen=True)
class _Bucket:
    start: int
    stop: int
    pieces: list[_Piece]


@dataclass(frozen=True)
class _Plan:
    width: int
    buckets: list[_Bucket]
    full_tiles: int
    table: Tensor
    shapes: list[torch.Size]
    fields_of_rows: int


@lru_cache(maxsize=64)
def _make_plan(shapes: tuple[tuple[int, int], ...], limit: int, dtype: torch.dtype) -> _Plan:
    """Lay out gradients of certain numbers and lengths of rows."""
    width = min(_WIDTHS, key=lambda width: sum(r * -(-n // width) for r, n in shapes) * (width + _COST_OF_A_TILE))
    packer = _Packer(width, max(1, limit // width))
    for gradient, (rows, length) in enumerate(shapes):
        full = length - length % width
        if length == full:  # nothing between the rows
            packer.add(gradient, 1, rows * full, 0, rows * full)
        elif full:
            packer.add(gradient, rows, full, 0, length)
    full_tiles = packer.stop
    for gradient, (rows, length) in enumerate(shapes):
        if length % width:
            packer.add(gradient, rows, length % width, length - length % width, length)
    # not on the default device, nor of use in inference mode alone
    with torch.inference_mode(False), torch.device("cpu"):
        counts, lengths = torch.tensor(shapes).unbind(1)
        gradient_of_row = torch.arange(len(shapes)).repeat_interleave(counts)
        lengths = lengths[gradient_of_row]
        every_row = torch.arange(len(lengths))
        partial = every_row[lengths % width > 0]
        owner = torch.cat([every_row.repeat_interleave(lengths // width), partial])
        count = torch.cat([torch.full((full_tiles,), width), lengths[partial] % width])
        fields = tabulate(owner, count, dtype)
        positions = torch.arange(width).to(dtype).view(fields[0].dtype)
        tables = [positions, *fields, *tabulate(gradient_of_row, lengths, dtype)]
        table = torch.cat([table.view(-1) for table in tables])
    return _Plan(width, packer.buckets, full_tiles, table, [table.shape for table in tables], len(fields))


class _Packer:
    """Fill buckets of as many tiles one after the other."""

    def __init__(self, width: int, limit: int) -> None:
        self.buckets: list[_Bucket] = []
        self.stop = 0
        self._width, self._limit = width, limit

    def add(self, gradient: int, rows: int, length: int, start: int, stride: int) -> None:
        """Add a part of each row of a gradient; what does not fit goes to the next bucket."""
        while rows:
            tiles = -(-length // self._width)
            free = self._limit - self.stop % self._limit
            if rows == 1 and tiles > free:
                self._place(gradient, 1, free * self._width, start, free * self._width)
                start, length = start + free * self._width, length - free * self._width
            elif tiles > free:
                self.add(gradient, 1, length, start, length)
                start, rows = start + stride, rows - 1
            else:
                fitting = min(rows, free // tiles)
                self._place(gradient, fitting, length, start, stride)
                start, rows = start + fitting * stride, rows - fitting

    def _place(self, gradient: int, rows: int, length: int, start: int, stride: int) -> None:
        tiles = -(-length // self._width)
        if self.stop % self._limit == 0:
            self.buckets.append(_Bucket(self.stop, self.stop, []))
        bucket = self.buckets[-1]
        target = ((self.stop - bucket.start) * self._width, tiles * self._width)
        if rows == 1:  # equal strides, for foreach to copy all at once
            stride, target = length, (target[0], length)
        bucket.pieces.append(_Piece(gradient, rows, length, start, stride, *target))
        self.stop += rows * tiles
        self.buckets[-1] = _Bucket(bucket.start, self.stop, bucket.pieces)
