"""The statistics of gradients of which ranks hold parts, as a GradientMonitor records them."""

import torch
from torch import Tensor

from lightning_znorm.backends.layouts import RankGroup, Shard
from lightning_znorm.backends.sharded import find_moments, list_present
from lightning_znorm.functional import ShardedGradients, find_part
from lightning_znorm.monitor.records import compare_gradients


def copy_gradients(gradients: ShardedGradients) -> ShardedGradients:
    """Return a copy that no transform changes."""
    plain = {position: gradient.clone() for position, gradient in gradients.plain.items()}
    shards = {
        group: [Shard(shard.layout, None if shard.gradient is None else shard.gradient.clone()) for shard in members]
        for group, members in gradients.shards.items()
    }
    return ShardedGradients(gradients.parameters, plain, shards, gradients.positions)


def compare_sharded_gradients(
    raw: ShardedGradients, near_zero: float, raw_scale: Tensor | None, received_scale: Tensor | None
) -> Tensor:
    """Return the statistics of raw gradients and of those that their parameters have now, as :func:`compare_gradients`.

    All ranks must call this together: the sums of their parts are added up, with one collective per group of ranks.

    """
    values = torch.empty(9, len(raw.parameters), dtype=torch.float64, device="cpu")
    options = (near_zero, raw_scale, received_scale)
    parts = [find_part(parameter) for parameter in raw.parameters]  # on every rank the same, as it may exchange some
    if raw.plain:
        places = [*raw.plain]
        received = [parts[place] for place in places]
        values[:, places] = compare_gradients([*raw.plain.values()], received, *options)
    for group, shards in raw.shards.items():
        positions = raw.positions[group]
        present, gradients = list_present(shards)
        received = [None if (place := positions[i]) is None else parts[place] for i in present]
        sums = torch.zeros(7, len(shards), dtype=torch.float64, device="cpu")
        if present:
            copies = torch.tensor([shards[i].layout.copies for i in present], device="cpu")
            counts = torch.tensor([gradient.numel() for gradient in gradients], device="cpu")
            sums[:, present] = _to_sums(compare_gradients(gradients, received, *options), counts) / copies
        whole = _to_statistics(_add_up(sums, group), shards)
        known = [i for i, place in enumerate(positions) if place is not None]
        values[:, [place for place in positions if place is not None]] = whole[:, known]
    return values


def _add_up(sums: Tensor, group: RankGroup) -> Tensor:
    return group.add_up(sums.to(group.device)).cpu()


def _to_sums(statistics: Tensor, counts: Tensor) -> Tensor:
    """Return sums of elements, of squares, of those near zero, of both gradients, and their inner product."""
    norm, mean, _, near_zero, received_norm, received_mean, _, received_near_zero, cosine = statistics
    return torch.stack(
        [
            mean * counts,
            norm.square(),
            near_zero * counts,
            received_mean * counts,
            received_norm.square(),
            received_near_zero * counts,
            cosine * norm * received_norm,
        ]
    )


def _to_statistics(sums: Tensor, shards: list[Shard]) -> Tensor:
    columns = []
    for total, squares, near_zero in (sums[:3], sums[3:6]):
        moments = find_moments(shards, torch.cat([total, squares]))
        columns += [squares.sqrt(), moments.mean, (moments.squares / moments.count).sqrt(), near_zero / moments.count]
    norms = torch.stack([columns[0], columns[4]])
    cosine = (sums[6] / norms[0] / norms[1]).clamp(-1.0, 1.0)
    is_zero = norms == 0
    cosine = torch.where(is_zero.any(dim=0), is_zero.all(dim=0).double(), cosine) + 0 * norms.sum(dim=0)
    return torch.stack([*columns, cosine])
