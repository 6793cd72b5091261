"""The transforms of gradients of which each rank holds a part, from sums over the ranks of one group.

Each has two phases. The first computes, from the parts of this rank, a vector whose sum over the ranks the second one
needs. The length and order of the vector follow from the layouts alone, so that every rank contributes a vector of the
same length, with zeros where it has no gradient. No gradient leaves its rank.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_znorm.backends import clipping
from lightning_znorm.backends._memory import to_device
from lightning_znorm.backends.choice import choose
from lightning_znorm.backends.gradients import group_by_device
from lightning_znorm.backends.layouts import Shard
from lightning_znorm.backends.moments import Moments, compute_edit

_SMALLEST_VARIANCE = 1e-14  # relative to mean²: from sums of squares, a smaller one is no more than their rounding


def measure(shards: Sequence[Shard]) -> Tensor:
    r"""Return the sum and the sum of squares of each part.

    .. math::
        \frac{1}{c} \sum_i g_i, \qquad \frac{1}{c} \sum_i g_i^2

    with the number :math:`c` of ranks that hold the same part.

    Args:
        shards: Of one group.

    Returns:
        float64 tensor of shape ``(2 * len(shards),)`` on the group's device: first all sums, then all sums of squares.

    """
    sums = torch.zeros(2, len(shards), dtype=torch.float64, device=shards[0].layout.group.device)
    present, gradients = list_present(shards)
    for index, members in group_by_device(gradients).values():
        positions = [present[i] for i in index]
        moments = choose(members).measure(members)
        total = moments.count * moments.mean
        copies = _tabulate([shards[position].layout.copies for position in positions], total)
        values = torch.stack([total, moments.squares + total * moments.mean]) / copies
        sums.index_copy_(1, _index(positions, sums.device), values.to(sums.device))
    return sums.flatten()


def find_moments(shards: Sequence[Shard], sums: Tensor) -> Moments:
    """Return the moments of the whole gradients from :func:`measure`, added up over the ranks.

    A variance below 1e-14 of the squared mean counts as zero, so that a constant gradient is one.
    """
    total, squares = sums.view(2, len(shards))
    count = _tabulate([max(shard.layout.shape.numel(), 1) for shard in shards], sums)
    mean = total / count
    variance = squares / count - mean.square()
    variance = variance.masked_fill(variance < _SMALLEST_VARIANCE * mean.square(), 0.0)
    return Moments(count, mean, variance * count)


def znorm_(
    shards: Sequence[Shard], sums: Tensor, eps: float, grad_scale: Tensor | None = None, center: bool = True
) -> Tensor:
    """Normalize the parts in place by the statistics of the whole gradients.

    Args:
        shards: Those of :func:`measure`.
        sums: Its result, added up over the ranks.
        eps: As for :func:`lightning_znorm.backends.reference.znorm_`, like the others.
        grad_scale: The same.
        center: The same.

    Returns:
        float64 tensor of shape ``(3, len(shards))`` on the group's device: mean, standard deviation and cosine of the
        whole gradients; on all ranks the same.

    """
    scale = 1.0 if grad_scale is None else grad_scale.to(sums).reshape(())
    mean, factor, statistics = compute_edit(find_moments(shards, sums), eps, scale, center)
    present, gradients = list_present(shards, once=True)
    for device, (index, members) in group_by_device(gradients).items():
        positions = _index([present[i] for i in index], sums.device)
        edit = torch.stack([mean, factor]).index_select(1, positions).to(device)
        choose(members).apply_(members, *edit)
    return statistics


def measure_norm(shards: Sequence[Shard], norm_type: float) -> Tensor:
    """Return the norm of all parts of this rank at the place of this rank, and zeros at those of the others.

    Args:
        shards: Of one group.
        norm_type: As for :func:`lightning_znorm.backends.reference.norm`.

    Returns:
        float64 tensor with one element per rank, on the group's device. Added up over the ranks, it has the norms of
        all, for :func:`.clipping.combine`; what is held by several ranks counts once.

    """
    group = shards[0].layout.group
    norms = torch.zeros(len(group.ranks), dtype=torch.float64, device=group.device)
    parts = []
    for copies in {shard.layout.copies for shard in shards}:
        _, gradients = list_present([shard for shard in shards if shard.layout.copies == copies], once=True)
        for _, members in group_by_device(gradients).values():
            parts.append(choose(members).norm(members, norm_type).to(norms) * copies ** (-1 / norm_type))
    if parts:
        norms[group.position] = clipping.combine(parts, norm_type)
    return norms


def scale_(shards: Sequence[Shard], factor: Tensor) -> None:
    """Multiply all parts by a factor, in place; NaN leaves them unchanged."""
    _, gradients = list_present(shards, once=True)
    for device, (_, members) in group_by_device(gradients).items():
        choose(members).scale_(members, factor.to(device))


def list_present(shards: Sequence[Shard], once: bool = False) -> tuple[list[int], list[Tensor]]:
    """Return the positions of the parts that are there, and these parts; of parts that are shared, ``once`` the first.

    Example::

        >>> from lightning_znorm.backends.layouts import Layout, RankGroup
        >>> layout = Layout(RankGroup((0, 1), "cpu", torch.device("cpu")), 1, torch.Size([2]))
        >>> list_present([Shard(layout, None), Shard(layout, torch.ones(2))])
        ([1], [tensor([1., 1.])])

    """
    present, gradients, seen = [], [], set()
    for position, shard in enumerate(shards):
        if shard.gradient is not None and not (once and id(shard.gradient) in seen):
            seen.add(id(shard.gradient))
            present.append(position)
            gradients.append(shard.gradient)
    return present, gradients


def _index(positions: Sequence[int], device: torch.device) -> Tensor:
    return to_device(positions, torch.int64, device)


def _tabulate(values: Sequence[int], like: Tensor) -> Tensor:
    return to_device(values, torch.float64, like.device)
