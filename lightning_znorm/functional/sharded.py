"""The transforms of gradients of which ranks hold parts, in two phases.

The vectors of the first phase are added up over the ranks, with one collective per group of ranks, for the second.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_znorm.backends import clipping, sharded, sharded_rows
from lightning_znorm.backends.gradients import are_plain, require_transformable
from lightning_znorm.backends.layouts import Layout, RankGroup, Shard, explain_failure, is_dtensor
from lightning_znorm.errors import ArgumentTypeError
from lightning_znorm.functional.plain import (
    centralize_gradients_,
    find_factor,
    group_unique,
    list_norms,
    scale_groups_,
    znorm_gradients_,
)
from lightning_znorm.functional.stats import GradientStats, join_stats

Sums = Mapping[RankGroup, Tensor]


@dataclass(frozen=True)
class ShardedGradients:
    """This rank's parts of the gradients of some parameters, and the gradients that it holds whole.

    Attributes:
        parameters: The parameters that have statistics: those with a gradient, which may be empty on this rank.
        plain: Gradients that this rank holds whole, by position among these parameters.
        shards: Parts by group of ranks, in the order of the parameters, also of those without a gradient.
        positions: Position of each part among these parameters, ``None`` for one without statistics.

    """

    parameters: list[Tensor]
    plain: dict[int, Tensor]
    shards: dict[RankGroup, list[Shard]]
    positions: dict[RankGroup, list[int | None]]


def collect_gradients(parameters: Iterable[Tensor], find_layout: Callable[[Tensor], Layout | None]) -> ShardedGradients:
    """Collect this rank's parts of gradients; those that are not placed as their parameter are redistributed first.

    Args:
        parameters: Parameters, each once, in the same order on every rank.
        find_layout: Returns the layout of a parameter, ``None`` for one that each rank holds whole.

    """
    collected = ShardedGradients([], {}, {}, {})
    for parameter in parameters:
        gradient, layout = find_part(parameter), find_layout(parameter)
        part = gradient if gradient is not None and gradient.numel() else None
        # a rank may have no fragment of a gradient
        is_fragment = layout is not None and not is_dtensor(parameter)
        has_statistics = gradient is not None or (is_fragment and parameter.requires_grad)
        position = len(collected.parameters)
        if layout is not None:
            collected.shards.setdefault(layout.group, []).append(Shard(layout, part))
            collected.positions.setdefault(layout.group, []).append(position if has_statistics else None)
        elif part is not None:
            collected.plain[position] = part
        else:
            continue
        if has_statistics:
            collected.parameters.append(parameter)
    return collected


def require_transformable_parts(
    gradients: ShardedGradients, name_of: Callable[[Tensor], str], scaled: bool = False
) -> None:
    """Raise if a gradient cannot be transformed in place, see :func:`.require_transformable`.

    Where this rank has no part, the dtype of the parameter tells what the other ranks find.
    """
    parts = dict(gradients.plain)
    for group, shards in gradients.shards.items():
        for position, shard in zip(gradients.positions[group], shards, strict=True):
            if position is not None:
                empty = torch.empty(0, dtype=gradients.parameters[position].dtype, device="cpu")
                parts[position] = empty if shard.gradient is None else shard.gradient
    if not are_plain([*parts.values()], scaled):
        for position, part in parts.items():
            require_transformable(part, name_of(gradients.parameters[position]), scaled)
    for parameter in gradients.parameters:
        if parameter.grad is not None and is_dtensor(parameter) != is_dtensor(parameter.grad):
            one, other = ("DTensor", "plain tensor") if is_dtensor(parameter) else ("plain tensor", "DTensor")
            raise ArgumentTypeError(
                f"The parameter `{name_of(parameter)}` is a {one}, but its gradient is a {other}. Distribute both or"
                " none: `DTensor.full_tensor` makes a plain tensor, `distribute_tensor` a DTensor."
            )


def find_part(parameter: Any) -> Tensor | None:
    """Return this rank's part of the gradient of a parameter, ``None`` if it has none.

    The gradient of a DTensor is first redistributed as its parameter is, if necessary, by a collective of its own.
    """
    gradient = parameter.grad
    if gradient is None or not (is_dtensor(gradient) and is_dtensor(parameter)):
        return gradient  # type: ignore[no-any-return]
    if gradient.placements != parameter.placements:  # such as partial sums
        mesh = parameter.device_mesh
        with explain_failure(mesh.get_all_groups()[0], torch.device(mesh.device_type)):
            gradient = parameter.grad = gradient.redistribute(placements=parameter.placements)
    part: Any = gradient.to_local()
    return part.wait() if hasattr(part, "wait") else part  # type: ignore[no-any-return]


def measure_moments(gradients: ShardedGradients) -> dict[RankGroup, Tensor]:
    """Return the vectors for :func:`znorm_sharded_`."""
    return {group: sharded.measure(shards) for group, shards in gradients.shards.items()}


def znorm_sharded_(
    gradients: ShardedGradients, sums: Sums, eps: float, grad_scale: Tensor | None = None, center: bool = True
) -> GradientStats:
    """Normalize by the statistics of whole gradients, from the vectors of :func:`measure_moments` added up."""
    return _edit(
        gradients,
        lambda plain: znorm_gradients_(plain, eps, grad_scale, center),
        lambda group, shards: sharded.znorm_(shards, sums[group], eps, grad_scale, center),
    )


def measure_rows(gradients: ShardedGradients) -> dict[RankGroup, Tensor]:
    """Return the vectors for :func:`centralize_sharded_`."""
    return {group: sharded_rows.measure(shards) for group, shards in gradients.shards.items()}


def centralize_sharded_(gradients: ShardedGradients, sums: Sums, grad_scale: Tensor | None = None) -> GradientStats:
    """Centralize whole rows, from the vectors of :func:`measure_rows` added up."""
    return _edit(
        gradients,
        lambda plain: centralize_gradients_(plain, grad_scale),
        lambda group, shards: sharded_rows.centralize_(shards, sums[group], grad_scale),
    )


def measure_norms(
    gradients: ShardedGradients, norm_type: float = 2.0, with_stats: bool = True
) -> dict[RankGroup, Tensor]:
    """Return the vectors for :func:`clip_sharded_`."""
    return {
        group: torch.cat([sharded.measure_norm(shards, norm_type), *([sharded.measure(shards)] if with_stats else [])])
        for group, shards in gradients.shards.items()
    }


def clip_sharded_(
    gradients: ShardedGradients,
    sums: Sums,
    max_norm: float,
    norm_type: float = 2.0,
    grad_scale: Tensor | None = None,
    with_stats: bool = True,
) -> GradientStats:
    """Scale all gradients so that the norm of the whole ones is bounded, from those of :func:`measure_norms` added up.

    ``norm_type`` and ``with_stats`` are those of that call.
    """
    plain = group_unique([*gradients.plain.values()])
    norms = [clipping.combine(sums[group][: len(group.ranks)].unbind(), norm_type) for group in gradients.shards]
    factor, scale = find_factor([*norms, *list_norms(plain, norm_type)], norm_type, max_norm, grad_scale)

    def scale_shards_(group: RankGroup, shards: list[Shard]) -> Tensor | None:
        sharded.scale_(shards, factor)
        if not with_stats:
            return None
        moments = sharded.find_moments(shards, sums[group][len(group.ranks) :])
        return torch.stack(moments.statistics(scale))

    return _edit(gradients, lambda _: scale_groups_(plain, factor, scale, with_stats), scale_shards_)


def add_up(sums: Sums) -> None:
    """Replace each vector by its sum over the ranks of its group, with one collective each."""
    for group, vector in sums.items():
        group.add_up(vector)


def _edit(
    gradients: ShardedGradients,
    edit_plain: Callable[[list[Tensor]], GradientStats],
    edit_shards: Callable[[RankGroup, list[Shard]], Tensor | None],
) -> GradientStats:
    """Edit plain gradients and the parts of each group, and return the statistics of all."""
    columns: list[tuple[Sequence[int], Tensor]] = []
    if gradients.plain:
        places = [*gradients.plain]
        for stats in edit_plain([*gradients.plain.values()]).by_device.values():
            columns.append(([places[i] for i in stats.index], torch.stack([stats.mean, stats.std, stats.cosine])))
    for group, shards in gradients.shards.items():
        values = edit_shards(group, shards)
        positions = gradients.positions[group]
        if values is not None:
            known = [column for column, position in enumerate(positions) if position is not None]
            chosen = values if len(known) == len(positions) else values[:, known]
            columns.append(([position for position in positions if position is not None], chosen))
    return join_stats(columns)
