"""Where a rank's part of a parameter belongs in the whole, and which ranks hold the other parts."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_znorm._torch import find_timeout
from lightning_znorm.backends._memory import widest_dtype
from lightning_znorm.errors import ArgumentTypeError, CollectiveError


@dataclass(frozen=True)
class RankGroup:
    """Ranks that hold the parts of parameters together.

    Attributes:
        ranks: Their global ranks, in ascending order.
        device_type: Kind of the device on which they communicate.
        device: That device of this rank.
        process_groups: One of all these ranks, or one along each dimension of their mesh.

    Raises:
        ArgumentTypeError: If the device does not compute in float64.

    """

    ranks: tuple[int, ...]
    device_type: str
    device: torch.device = field(compare=False)
    process_groups: tuple[Any, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if widest_dtype(self.device) != torch.float64:
            raise ArgumentTypeError(
                f"Gradients of which ranks hold parts are not supported on devices of type '{self.device_type}', which"
                " do not compute in float64. Use one device or data parallelism (DDP)."
            )

    @property
    def position(self) -> int:
        """Position of this rank in the group."""
        return self.ranks.index(dist.get_rank())

    def has_all_ranks(self) -> bool:
        """Return whether no rank is outside the group."""
        return len(self.ranks) == dist.get_world_size()

    def add_up(self, vector: Tensor) -> Tensor:
        """Replace a vector by its sum over the ranks, all of which must call this together.

        Raises:
            CollectiveError: If another rank is gone or late.

        """
        for process_group in self.process_groups:
            with explain_failure(process_group, vector.device):
                dist.all_reduce(vector, group=process_group)
        return vector


@contextmanager
def explain_failure(process_group: Any, device: torch.device) -> Iterator[None]:
    """Turn the error of a collective into a :class:`CollectiveError` that names ranks, time-out and remedy."""
    try:
        yield
    except RuntimeError as error:
        timeout = find_timeout(process_group, device)
        limit = "" if timeout is None else f" (the time-out of the group is {timeout.total_seconds():g} s)"
        raise CollectiveError(
            f"Rank {dist.get_rank()} could not exchange the statistics of gradients with the ranks"
            f" {dist.get_process_group_ranks(process_group)}: one of them has ended, or did not come to the same"
            f" optimizer step in time{limit}. Look for the cause in the output of the other ranks."
            f" {type(error).__name__}: {error}"
        ) from error


@dataclass(frozen=True)
class Rows:
    """Rows, or a part of one or more rows, in a rank's part of a gradient.

    Attributes:
        count: Number of rows.
        slot: Place of the first row among the rows whose sums are exchanged; ``None`` for whole rows, whose sums are
            not.
        span: Positions of the elements in a one-dimensional part; ``None`` if dimension 0 of the part is that of the
            rows.

    """

    count: int
    slot: int | None = None
    span: tuple[int, int] | None = None

    def view(self, part: Tensor) -> Tensor:
        """Return the elements, dimension 0 being that of the rows."""
        return part if self.span is None else part[slice(*self.span)].view(self.count, -1)


@dataclass(frozen=True)
class Layout:
    """How the ranks of a group hold a parameter.

    A row is an index of dimension 0, as for gradient centralization.

    Attributes:
        group: The ranks.
        copies: Number of ranks that hold the same part as this one.
        shape: Shape of the whole parameter.
        rows: The rows of this rank's part, if whole rows have several elements.
        slots: Number of rows whose sums are exchanged, on every rank the same.

    """

    group: RankGroup
    copies: int
    shape: torch.Size
    rows: tuple[Rows, ...] = ()
    slots: int = 0

    @property
    def row_length(self) -> int:
        """Number of elements of a whole row."""
        return self.shape[1:].numel() if len(self.shape) > 1 else 1


@dataclass(frozen=True)
class Shard:
    """This rank's part of a gradient.

    Attributes:
        layout: How the ranks hold the parameter.
        gradient: The part; ``None`` if it is empty, or if there is no gradient.

    """

    layout: Layout
    gradient: Tensor | None


def is_dtensor(tensor: Tensor) -> bool:
    """Return whether a tensor is a DTensor."""
    return type(tensor) not in (Tensor, nn.Parameter) and hasattr(tensor, "placements")


@torch.no_grad()
def find_dtensor_layout(tensor: Any) -> Layout | None:
    """Return the layout of a DTensor, whatever its mesh; ``None`` if this rank is outside the mesh.

    Raises:
        ArgumentTypeError: If the DTensor itself consists of partial sums.

    """
    mesh, part = tensor.device_mesh, tensor.to_local()
    coordinates = mesh.get_coordinate()
    if coordinates is None:
        return None
    ranks = _list_ranks(mesh)
    is_everyone = len(ranks) == dist.get_world_size()
    device = part.device if part.device.type == mesh.device_type else torch.device(mesh.device_type)
    groups = (dist.group.WORLD,) if is_everyone else tuple(mesh.get_all_groups())
    group = RankGroup(ranks, mesh.device_type, device, groups)
    count = len(part) if tensor.ndim else 0
    # a cached one may have process groups that are no more
    return replace(_find_layout(group, mesh, tuple(coordinates), tensor.placements, tensor.shape, count), group=group)


@lru_cache(maxsize=1024)
def _find_layout(
    group: RankGroup,
    mesh: Any,
    coordinates: tuple[int, ...],
    placements: tuple[Any, ...],
    shape: torch.Size,
    count: int,
) -> Layout:
    """Return the layout of a DTensor of whose dimension 0 this rank holds ``count`` indices."""
    # also of a _StridedShard, which is no Shard
    dims = {i: placement.dim for i, placement in enumerate(placements) if hasattr(placement, "dim")}
    others = [placement for i, placement in enumerate(placements) if i not in dims]
    if not all(placement.is_replicate() for placement in others):
        raise ArgumentTypeError(
            f"The placements of a parameter are {placements}, expected `Shard` and `Replicate`. Redistribute it."
        )
    copies = math.prod(mesh.size(i) for i in range(mesh.ndim) if i not in dims)
    layout = Layout(group, copies, shape)
    if layout.row_length < 2:
        return layout
    if not any(dims.values()):
        return replace(layout, rows=(Rows(count),))
    # ranks that hold parts of the same rows differ only in the other dimensions of the mesh
    chunk, chunks = 0, 1
    for i in (i for i, dim in dims.items() if dim == 0):
        chunk, chunks = chunk * mesh.size(i) + coordinates[i], chunks * mesh.size(i)
    most = math.ceil(shape[0] / chunks)
    return replace(layout, rows=(Rows(count, slot=chunk * most),), slots=chunks * most)


@lru_cache(maxsize=64)
def _list_ranks(mesh: Any) -> tuple[int, ...]:
    return tuple(sorted(mesh.mesh.flatten().tolist()))


@dataclass(frozen=True)
class Fragment:
    """This rank's part of a parameter that is a part of a flat one, of which ranks have equally long shards.

    Attributes:
        shape: Shape of the whole parameter.
        start: Position of the first element in the flattened parameter.
        length: Number of elements, which may be 0.
        offset: Position of the first element in the shard of this rank.

    """

    shape: torch.Size
    start: int
    length: int
    offset: int


def find_fragment_layout(group: RankGroup, fragment: Fragment, shard: int, shards: int, shard_size: int) -> Layout:
    """Return the layout of a parameter of which this rank holds a fragment.

    Args:
        group: The ranks, also those that hold copies of the same shards.
        fragment: This rank's part.
        shard: Number of this rank's shard, from 0.
        shards: Number of shards.
        shard_size: Number of elements of each.

    Example::

        >>> group = RankGroup((0, 1, 2), "cpu", torch.device("cpu"))
        >>> fragment = Fragment(torch.Size([4, 3]), start=5, length=5, offset=0)
        >>> layout = find_fragment_layout(group, fragment, shard=1, shards=3, shard_size=5)
        >>> for rows in layout.rows:  # the end of row 1, which begins on rank 0, row 2, and the begin of row 3
        ...     print(rows)
        Rows(count=1, slot=0, span=(0, 1))
        Rows(count=1, slot=None, span=(1, 4))
        Rows(count=1, slot=1, span=(4, 5))

    """
    layout = Layout(group, len(group.ranks) // shards, fragment.shape)
    length, row = fragment.length, layout.row_length
    if row < 2:
        return layout
    before = fragment.start % row
    head = min(-fragment.start % row, length)
    tail = (length - head) % row
    middle = length - head - tail
    rows = []
    # the slot of a row that is cut is the number of the shard in which it begins, where it is the last one
    if head:
        rows.append(Rows(1, shard - math.ceil((before - fragment.offset) / shard_size), (0, head)))
    if middle:
        rows.append(Rows(middle // row, None, (head, head + middle)))
    if tail:
        rows.append(Rows(1, shard, (head + middle, length)))
    return replace(layout, rows=tuple(rows), slots=shards)
