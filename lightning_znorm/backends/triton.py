"""The z-score on a GPU by Triton: one launch, in which the second read comes from the L2 cache."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import pairwise
from operator import or_

import torch
import triton.language as tl
from torch import Tensor

from lightning_znorm.backends import reference
from lightning_znorm.backends._memory import has_no_gaps, to_device
from lightning_znorm.backends._triton_kernel import znorm_kernel

_DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
_TILE = 4096  # elements that a program holds in registers
_JOIN = 512  # tiles that are joined at once
_GROUP = 12 << 20  # bytes that are measured before they are normalized; two groups should fit into L2
_WARPS = 4
_PROGRAMS = 4  # per multiprocessor


@dataclass(frozen=True)
class Plan:
    """The work for gradients of certain sizes, at any address.

    Attributes:
        sizes: Number of elements of each gradient.
        first_tiles: Index of the first tile of each gradient, and the number of tiles.
        owners: Index of the gradient of each tile.
        items: The work in order, see the kernel.

    """

    sizes: Tensor
    first_tiles: Tensor
    owners: Tensor
    items: Tensor


def znorm_(gradients: Sequence[Tensor], eps: float, grad_scale: Tensor | None = None) -> Tensor:
    """Compute :func:`lightning_znorm.backends.reference.znorm_` in one launch per dtype, without waiting.

    The statistics of tiles of 4,096 elements (count, mean and sum of squared deviations, by two passes over registers,
    in units of a power of two near the largest element) are joined in float64 in a fixed order. A gradient whose
    strides leave gaps is normalized in a copy; float64 is left to the reference.

    Args:
        gradients: Dense, real, non-empty floating-point tensors of any shape and strides, all on one device.
        eps: As for the reference.
        grad_scale: As for the reference.

    Returns:
        As the reference: float64 tensor of shape ``(3, len(gradients))`` on the gradients' device.

    """
    if len({gradient.dtype for gradient in gradients}) == 1:
        return _normalize_(gradients, eps, grad_scale)
    groups: dict[torch.dtype, list[int]] = {}
    for position, gradient in enumerate(gradients):
        groups.setdefault(gradient.dtype, []).append(position)
    stats = torch.empty(3, len(gradients), dtype=torch.float64, device=gradients[0].device)
    for positions in groups.values():
        index = to_device(positions, torch.int64, stats.device)
        stats.index_copy_(1, index, _normalize_([gradients[position] for position in positions], eps, grad_scale))
    return stats


def _normalize_(gradients: Sequence[Tensor], eps: float, grad_scale: Tensor | None) -> Tensor:
    """Normalize gradients of one dtype."""
    dtype, device = gradients[0].dtype, gradients[0].device
    if dtype not in _DTYPES:
        return reference.znorm_(gradients, eps, grad_scale)
    with_gaps = [gradient for gradient in gradients if not gradient.is_contiguous() and not has_no_gaps(gradient)]
    if with_gaps:
        copies = {id(gradient): gradient.contiguous() for gradient in with_gaps}
        stats = _normalize_([copies.get(id(gradient), gradient) for gradient in gradients], eps, grad_scale)
        for gradient in with_gaps:
            gradient.copy_(copies[id(gradient)])
        return stats
    n = len(gradients)
    addresses = [gradient.data_ptr() for gradient in gradients]
    is_captured = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    # a graph fills separate tables at every replay
    make_plan_ = make_plan.__wrapped__ if is_captured else make_plan
    plan = make_plan_(tuple([gradient.numel() for gradient in gradients]), dtype.itemsize, device)
    table = to_device([*addresses, *struct.unpack("q", struct.pack("d", eps))], torch.int64, device)
    tiles = len(plan.owners)
    stats = torch.empty(3, n, dtype=torch.float64, device=device)
    scale = None if grad_scale is None else grad_scale.to(device, torch.float32)
    znorm_kernel[(count_programs(device, len(plan.items)),)](
        table,
        plan.sizes,
        plan.first_tiles,
        plan.owners,
        plan.items,
        torch.zeros(1 + 2 * n, dtype=torch.int32, device=device),
        torch.empty(2, tiles, dtype=torch.float64, device=device),
        torch.empty(4, n, dtype=torch.float32, device=device),
        stats,
        table if scale is None else scale,
        len(plan.items),
        tiles,
        n,
        dtype=_DTYPES[dtype],
        tile_size=_TILE,
        join_size=_JOIN,
        is_scaled=scale is not None,
        is_aligned=reduce(or_, addresses) % 16 == 0,
        num_warps=_WARPS,
        enable_fp_fusion=True,
    )
    return stats


@lru_cache(maxsize=16)
def make_plan(sizes: tuple[int, ...], bytes_per_element: int, device: torch.device) -> Plan:
    """Plan the work: measure a group of gradients, measure the next, normalize the first, and so on.

    A gradient is normalized from its last tile to its first, as the last ones were read most recently. Gradients of one
    element are measured only.

    Args:
        sizes: Number of elements of each gradient.
        bytes_per_element: Size of the dtype.
        device: Device of the plan.

    """
    counts = torch.tensor(sizes, device="cpu")
    tiles = (counts + _TILE - 1) // _TILE
    first_tiles = torch.cat([torch.zeros(1, dtype=torch.int64, device="cpu"), tiles.cumsum(0)])
    owners = torch.repeat_interleave(torch.arange(len(sizes), device="cpu"), tiles)
    numbers = torch.arange(len(owners), device="cpu")
    bounds, held = [0], 0
    for position, size in enumerate(sizes):
        held += size * bytes_per_element
        if held >= _GROUP or position == len(sizes) - 1:
            bounds.append(int(first_tiles[position + 1]))
            held = 0
    groups = [numbers[start:stop] for start, stop in pairwise(bounds)]
    items = list(groups[:1])
    for number, group in enumerate(groups):
        items += groups[number + 1 : number + 2]
        items.append(~group[counts[owners[group]] > 1].flip(0))
    small = [to_device(table, torch.int32, device) for table in (first_tiles, owners, torch.cat(items))]
    return Plan(to_device(counts, torch.int64, device), *small)


def count_programs(device: torch.device, items: int) -> int:
    """Return how many programs share the work; any number is correct."""
    if device.type == "cpu":  # in the interpreter
        return 3
    return min(items, _PROGRAMS * torch.cuda.get_device_properties(device).multi_processor_count)
