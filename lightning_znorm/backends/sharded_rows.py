"""Gradient centralization of gradients of which each rank holds a part, in two phases as in :mod:`.sharded`.

Rows of which a rank holds all elements are centralized there. Only the sums of other rows are exchanged.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_znorm.backends._memory import to_device
from lightning_znorm.backends.choice import choose
from lightning_znorm.backends.gradients import group_by_device
from lightning_znorm.backends.layouts import Shard
from lightning_znorm.backends.sharded import find_moments, list_present
from lightning_znorm.backends.sharded import measure as measure_parts

_ROUNDING = 1e-15  # of the mean of a row, from sums in float64
_BATCH = 1 << 24  # elements that are copied at once


def measure(shards: Sequence[Shard]) -> Tensor:
    r"""Return the sums of each part, and those of the rows of which this rank holds parts.

    Args:
        shards: Of one group.

    Returns:
        float64 tensor on the group's device: the result of :func:`.sharded.measure`; for each shard the sum of
        :math:`M \mu_i^2` over its whole rows :math:`i` of :math:`M` elements and mean :math:`\mu_i`; and the sums of
        the other rows, at the slots of the layouts. What several ranks hold is divided by their number.

    """
    device = shards[0].layout.group.device
    between = torch.zeros(len(shards), dtype=torch.float64, device=device)
    slots = torch.zeros(sum(shard.layout.slots for shard in shards), dtype=torch.float64, device=device)
    first = 0
    for position, shard in enumerate(shards):
        layout, gradient = shard.layout, shard.gradient
        for rows in layout.rows:
            if gradient is None:
                break
            part = rows.view(gradient)
            if rows.slot is None:
                squares = _add_up_whole_rows(part).square_().sum().to(device)
                between[position] += squares / (layout.copies * layout.row_length)
            else:
                begin = first + rows.slot
                slots[begin : begin + rows.count] += _add_up_rows(part).to(device) / layout.copies
        first += layout.slots
    return torch.cat([measure_parts(shards), between, slots])


def centralize_(shards: Sequence[Shard], sums: Tensor, grad_scale: Tensor | None = None) -> Tensor:
    """Centralize the rows of the parts in place.

    Args:
        shards: Those of :func:`measure`.
        sums: Its result, added up over the ranks.
        grad_scale: As for :func:`lightning_znorm.backends.reference.centralize_`.

    Returns:
        float64 tensor of shape ``(3, len(shards))`` on the group's device: mean, standard deviation and cosine of the
        whole gradients; on all ranks the same.

    """
    count = len(shards)
    of_tensors, between, slots = sums[: 2 * count], sums[2 * count : 3 * count].clone(), sums[3 * count :]
    moments = find_moments(shards, of_tensors)
    is_finite = moments.squares.isfinite()
    # on a CPU, reading them is free, and parts of gradients that are not finite are left alone
    known = is_finite.tolist() if sums.device.type == "cpu" else [None] * count
    present, _ = list_present(shards, once=True)
    whole: list[tuple[int, Tensor]] = []
    first = 0
    for position, shard in enumerate(shards):
        layout = shard.layout
        own = slots[first : first + layout.slots]
        between[position] += own.square().sum() / layout.row_length
        first += layout.slots
        if shard.gradient is None or position not in present or known[position] is False:
            continue
        for rows in layout.rows:
            part = rows.view(shard.gradient)
            if rows.slot is None:
                whole.append((position, part))
            else:
                mean = own[rows.slot : rows.slot + rows.count] / layout.row_length
                _replace_(part, _subtract(part, mean.to(part.device)), is_finite[position])
    for batch in [whole] if known[0] is not None else _batch(whole):
        edited = [part if known[position] else part.clone() for position, part in batch]
        for _, members in group_by_device(edited).values():
            choose(members).centralize_(members)
        for (position, part), values in zip(batch, edited, strict=True):
            if values is not part:
                _replace_(part, values, is_finite[position])
    before = of_tensors[count:]
    has_rows = to_device([shard.layout.row_length > 1 for shard in shards], torch.bool, sums.device)
    # a projection: the inner product of before and after is the squared norm of after
    cosine = (1 - between / before).clamp(0.0, 1.0).sqrt()
    cosine = torch.where(has_rows & is_finite & (before > 0), cosine, 1.0)
    scale = 1.0 if grad_scale is None else grad_scale.to(sums).reshape(())
    return torch.stack([*moments.statistics(scale)[:2], cosine])


def _add_up_rows(part: Tensor) -> Tensor:
    return part.sum(dim=tuple(range(1, part.ndim)), dtype=torch.float64)


def _add_up_whole_rows(part: Tensor) -> Tensor:
    """Return the sums as exactly as the statistics need them: a CPU takes five times as long in float64."""
    if part.device.type == "cpu" and part.dtype != torch.float64:
        sums = part.sum(dim=tuple(range(1, part.ndim)), dtype=torch.float32).double()
        if sums.isfinite().all():
            return sums
    return _add_up_rows(part)


def _subtract(part: Tensor, mean: Tensor) -> Tensor:
    """Return the part of each row minus the mean of the row, rounded once, never to inf."""
    mean = mean.view(-1, *[1] * (part.ndim - 1))
    values = part.double() - mean
    values.masked_fill_(values.abs() <= _ROUNDING * mean.abs(), 0.0)
    largest = torch.finfo(part.dtype).max
    return values.clamp_(-largest, largest).to(part.dtype)


def _replace_(part: Tensor, values: Tensor, is_replaced: Tensor) -> None:
    part.copy_(torch.where(is_replaced.to(part.device), values, part))


def _batch(parts: Sequence[tuple[int, Tensor]]) -> Iterator[list[tuple[int, Tensor]]]:
    """Yield the parts in batches of not much more than ``_BATCH`` elements."""
    batch: list[tuple[int, Tensor]] = []
    elements = 0
    for position, part in parts:
        batch.append((position, part))
        elements += part.numel()
        if elements >= _BATCH:
            yield batch
            batch, elements = [], 0
    if batch:
        yield batch
