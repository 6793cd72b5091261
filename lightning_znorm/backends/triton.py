"""Gradient transforms on a GPU by Triton: three launches for all gradients, in the order of the stream."""

import struct
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache

import torch
import triton.language as tl
from torch import Tensor

from lightning_znorm.backends import reference
from lightning_znorm.backends._memory import has_no_gaps, to_device
from lightning_znorm.backends._triton_kernels import apply_kernel, conclude_kernel, measure_kernel
from lightning_znorm.backends.moments import Moments

DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
TILE = 4096  # elements that a program holds in registers
JOIN = 512  # tiles that are joined at once
WARPS = 4


def measure(gradients: Sequence[Tensor]) -> Moments:
    """Compute :func:`lightning_znorm.backends.reference.measure`, in float32 within tiles, without waiting.

    Args:
        gradients: As for the reference, on a CUDA device.

    Returns:
        As the reference.

    """
    rows = _map_dtypes(gradients, 3, reference.measure_rows, _measure_rows)
    return Moments(*rows)


def apply_(gradients: Sequence[Tensor], mean: Tensor, factor: Tensor) -> None:
    """Compute :func:`lightning_znorm.backends.reference.apply_` in one launch per dtype.

    Args:
        gradients: As for the reference, on a CUDA device.
        mean: As for the reference.
        factor: As for the reference.

    """
    edits = torch.stack([mean, factor])
    for dtype, positions in _group_by_dtype(gradients).items():
        members = [gradients[position] for position in positions]
        edit = edits if len(members) == len(gradients) else edits[:, to_device(positions, torch.int64, mean.device)]
        if dtype not in DTYPES:
            reference.apply_(members, *edit)
            continue
        members, copies = _without_gaps(members)
        _apply(_tabulate(members), edit)
        _copy_back_(copies)


def znorm_(gradients: Sequence[Tensor], eps: float, grad_scale: Tensor | None = None, center: bool = True) -> Tensor:
    """Compute :func:`lightning_znorm.backends.reference.znorm_` in three launches per dtype, without waiting.

    The moments of tiles of 4,096 elements (by two passes over registers, in units of a power of two near the largest
    element) are joined in float64 in a fixed order. A gradient whose strides leave gaps is normalized in a copy;
    float64 is left to the reference.

    Args:
        gradients: Dense, real, non-empty floating-point tensors of any shape and strides, all on one CUDA device.
        eps: As for the reference.
        grad_scale: As for the reference.
        center: As for the reference.

    Returns:
        As the reference: float64 tensor of shape ``(3, len(gradients))`` on the gradients' device.

    """

    def normalize_(members: list[Tensor]) -> Tensor:
        members, copies = _without_gaps(members)
        work = _tabulate(members, eps, center, grad_scale is not None)
        found = _conclude(work, _measure(work), grad_scale)
        _apply(work, found.edit)
        _copy_back_(copies)
        return found.stats

    return _map_dtypes(gradients, 3, lambda members: reference.znorm_(members, eps, grad_scale, center), normalize_)


def centralize_(gradients: Sequence[Tensor], grad_scale: Tensor | None = None) -> Tensor:
    """Compute :func:`lightning_znorm.backends.reference.centralize_` in four launches per dtype, without waiting.

    As :func:`znorm_`, with the rows of the gradients in the place of whole gradients.

    Args:
        gradients: As for :func:`znorm_`.
        grad_scale: As for the reference.

    Returns:
        As :func:`znorm_`.

    """

    def center_rows_(members: list[Tensor]) -> Tensor:
        members, copies = _without_gaps(members, by_rows=True)
        stats = _centralize(members, grad_scale)
        _copy_back_(copies)
        return stats

    return _map_dtypes(gradients, 3, lambda members: reference.centralize_(members, grad_scale), center_rows_)


@dataclass(frozen=True)
class Work:
    """Segments of one dtype on one device.

    Attributes:
        table: The table of :mod:`._triton_kernels`, on the device.
        segments: Number of segments.
        tiles: Number of tiles.
        dtype: The dtype.

    """

    table: Tensor
    segments: int
    tiles: int
    dtype: torch.dtype


@dataclass(frozen=True)
class _Conclusion:
    """The results of ``conclude_kernel``, which describes them."""

    moments: Tensor
    edit: Tensor
    stats: Tensor


def _measure_rows(gradients: list[Tensor]) -> Tensor:
    gradients, _ = _without_gaps(gradients)
    work = _tabulate(gradients)
    moments = _conclude(work, _measure(work)).moments
    counts = to_device([gradient.numel() for gradient in gradients], torch.float64, moments.device)
    return torch.cat([counts[None], moments[:2]])


def _centralize(gradients: list[Tensor], grad_scale: Tensor | None) -> Tensor:
    """Centralize the rows of gradients of one dtype whose rows lie one after the other."""
    device = gradients[0].device
    has_rows = [gradient.ndim > 1 and gradient.numel() > len(gradient) for gradient in gradients]
    rows = [len(gradient) if some else 1 for gradient, some in zip(gradients, has_rows, strict=True)]
    widths = [gradient.numel() // count for gradient, count in zip(gradients, rows, strict=True)]
    counts = torch.tensor(rows, device="cpu")
    owners = torch.repeat_interleave(torch.arange(len(rows), device="cpu"), counts)
    first_rows = _starts_of(counts)
    sizes = torch.tensor(widths, device="cpu")[owners]
    numbers = torch.arange(len(owners), device="cpu") - first_rows[owners]
    addresses = torch.tensor([gradient.data_ptr() for gradient in gradients], device="cpu")[owners]
    table = _make_table(addresses + numbers * sizes * gradients[0].element_size(), _describe_segments(sizes))
    tiles = int(((sizes + TILE - 1) // TILE).sum())
    work = Work(to_device(table, torch.int64, device), len(owners), tiles, gradients[0].dtype)
    by_row = _conclude(work, _measure(work)).moments
    # the rows are the tiles of a gradient
    whole = torch.cat([counts * torch.tensor(widths, device="cpu"), first_rows, torch.tensor(widths, device="cpu")])
    table = _make_table(torch.zeros_like(counts), whole, is_scaled=grad_scale is not None)
    joined = Work(to_device(table, torch.int64, device), len(gradients), len(owners), gradients[0].dtype)
    found = _conclude(joined, by_row, grad_scale)
    mean, squares, within = found.moments
    is_edited = squares.isfinite() & to_device(has_rows, torch.bool, device)
    factor = torch.where(is_edited, 1.0, torch.nan)
    _apply(work, torch.stack([by_row[0], factor[to_device(owners, torch.int64, device)]]))
    count = to_device(counts * torch.tensor(widths, device="cpu"), torch.float64, device)
    before = squares + count * mean.square()
    cosine = torch.where(is_edited & (before > 0), (within / before).sqrt(), 1.0)
    return torch.stack([found.stats[0], found.stats[1], cosine])


def _measure(work: Work) -> Tensor:
    partials = torch.empty(2, max(work.tiles, 1), dtype=torch.float64, device=work.table.device)
    if work.tiles:
        with _current(work.table.device):
            measure_kernel[(work.tiles,)](
                work.table,
                partials,
                work.segments,
                work.tiles,
                dtype=DTYPES[work.dtype],
                tile_size=TILE,
                num_warps=WARPS,
            )
    return partials


def _conclude(work: Work, partials: Tensor, grad_scale: Tensor | None = None) -> _Conclusion:
    device, n = work.table.device, work.segments
    # separate memory for each, as the kernel is compiled for aligned addresses
    moments, edit, stats = (torch.empty(rows, n, dtype=torch.float64, device=device) for rows in (3, 2, 3))
    scale = partials if grad_scale is None else grad_scale.to(device, torch.float64)
    with _current(device):
        conclude_kernel[(n,)](
            work.table, partials, scale, moments, edit, stats, n, partials.shape[1], join_size=JOIN, num_warps=WARPS
        )
    return _Conclusion(moments, edit, stats)


def _apply(work: Work, edit: Tensor) -> None:
    if not work.tiles:
        return
    with _current(work.table.device):
        apply_kernel[(work.tiles,)](
            work.table,
            edit,
            work.segments,
            torch.finfo(work.dtype).max,
            dtype=DTYPES[work.dtype],
            tile_size=TILE,
            num_warps=WARPS,
        )


def _tabulate(gradients: Sequence[Tensor], eps: float = 0.0, center: bool = True, is_scaled: bool = False) -> Work:
    """Return the work for whole gradients of one dtype."""
    plan = _plan(tuple([gradient.numel() for gradient in gradients]))
    addresses = torch.tensor([gradient.data_ptr() for gradient in gradients], device="cpu")
    table = _make_table(addresses, plan.segments, eps, center, is_scaled)
    return Work(to_device(table, torch.int64, gradients[0].device), len(gradients), plan.tiles, gradients[0].dtype)


@dataclass(frozen=True)
class _Plan:
    segments: Tensor
    tiles: int


@lru_cache(maxsize=16)
def _plan(sizes: tuple[int, ...]) -> _Plan:
    with torch.inference_mode(False):
        counts = torch.tensor(sizes, device="cpu")
        return _Plan(_describe_segments(counts), int(((counts + TILE - 1) // TILE).sum()))


def _describe_segments(sizes: Tensor) -> Tensor:
    """Return the part of the table that does not depend on addresses."""
    tiles = (sizes + TILE - 1) // TILE
    owners = torch.repeat_interleave(torch.arange(len(sizes), dtype=torch.int32, device="cpu"), tiles)
    pairs = torch.nn.functional.pad(owners, (0, len(owners) % 2)).view(torch.int64)
    return torch.cat([sizes, _starts_of(tiles), torch.full_like(sizes, TILE), pairs])


def _starts_of(counts: Tensor) -> Tensor:
    """Return where each part begins and the last one ends."""
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0))


def _make_table(
    addresses: Tensor, segments: Tensor, eps: float = 0.0, center: bool = True, is_scaled: bool = False
) -> Tensor:
    header = torch.tensor([*struct.unpack("q", struct.pack("d", eps)), center, is_scaled], device="cpu")
    return torch.cat([header, addresses, segments])


def _map_dtypes(
    gradients: Sequence[Tensor],
    rows: int,
    in_float64: Callable[[list[Tensor]], Tensor],
    in_float32: Callable[[list[Tensor]], Tensor],
) -> Tensor:
    """Return the columns of one of two functions, called once per dtype, in the order of the gradients."""
    groups = _group_by_dtype(gradients)
    parts = [
        (in_float32 if dtype in DTYPES else in_float64)([gradients[position] for position in positions])
        for dtype, positions in groups.items()
    ]
    if len(parts) == 1:
        return parts[0]
    order = torch.tensor([position for positions in groups.values() for position in positions], device="cpu").argsort()
    return torch.cat(parts, dim=1)[:, to_device(order, torch.int64, gradients[0].device)]


def _group_by_dtype(gradients: Sequence[Tensor]) -> dict[torch.dtype, list[int]]:
    groups: dict[torch.dtype, list[int]] = {}
    for position, gradient in enumerate(gradients):
        groups.setdefault(gradient.dtype, []).append(position)
    return groups


def _without_gaps(
    gradients: Sequence[Tensor], by_rows: bool = False
) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]]]:
    """Replace gradients that do not fill their memory, or not row by row, by copies; return the pairs, too."""
    members, copies = [], []
    for gradient in gradients:
        member = gradient
        if not gradient.is_contiguous():
            is_outermost = not by_rows or gradient.ndim < 2 or gradient.stride(0) == max(gradient.stride())
            if not (has_no_gaps(gradient) and is_outermost):
                member = gradient.contiguous()
                copies.append((gradient, member))
        members.append(member)
    return members, copies


def _copy_back_(copies: list[tuple[Tensor, Tensor]]) -> None:
    for gradient, copy in copies:
        gradient.copy_(copy)


def _current(device: torch.device) -> AbstractContextManager[object]:
    """Make the device current: Triton launches on that, wherever the addresses point."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
