"""The transforms of plain gradients, whose arguments have been checked."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from lightning_znorm.backends import clipping
from lightning_znorm.backends._memory import to_device
from lightning_znorm.backends.choice import choose
from lightning_znorm.backends.gradients import group_by_device
from lightning_znorm.functional.stats import DeviceStats, GradientStats

Group = tuple[tuple[int, ...], list[Tensor], list[Tensor]]


def znorm_gradients_(
    gradients: Sequence[Tensor], eps: float, grad_scale: Tensor | None = None, center: bool = True
) -> GradientStats:
    """Normalize as :func:`znorm_`, without its checks; a gradient that occurs twice is edited once."""
    return _edit_by_device(gradients, lambda members: choose(members).znorm_(members, eps, grad_scale, center))


def centralize_gradients_(gradients: Sequence[Tensor], grad_scale: Tensor | None = None) -> GradientStats:
    """Centralize as :func:`centralize_`, without its checks; a gradient that occurs twice is edited once."""
    return _edit_by_device(gradients, lambda members: choose(members).centralize_(members, grad_scale))


def clip_gradients_(
    gradients: Sequence[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    grad_scale: Tensor | None = None,
    with_stats: bool = True,
) -> GradientStats:
    """Scale all gradients by one factor so that their joint norm is at most ``max_norm``, and return their statistics.

    The gradients are not checked; one that occurs twice counts once and is edited once. If an element is inf or NaN,
    all stay unchanged. Statistics need two more passes over the gradients.
    """
    groups = group_unique(gradients)
    factor, scale = find_factor(list_norms(groups, norm_type), norm_type, max_norm, grad_scale)
    return scale_groups_(groups, factor, scale, with_stats)


def group_unique(gradients: Sequence[Tensor]) -> list[Group]:
    """Return for each device the positions of gradients, these gradients, and each of them once."""
    return [(index, members, list_unique(members)) for index, members in group_by_device(gradients).values()]


def list_norms(groups: Sequence[Group], norm_type: float) -> list[Tensor]:
    """Return the norm of the gradients on each device."""
    return [choose(unique).norm(unique, norm_type) for *_, unique in groups]


def find_factor(
    norms: Sequence[Tensor], norm_type: float, max_norm: float, grad_scale: Tensor | None
) -> tuple[Tensor, Tensor | float]:
    """Return the factor that bounds the norm of all parts, and the scale by which the gradients are multiplied."""
    norm = clipping.combine(norms, norm_type)
    scale = 1.0 if grad_scale is None else grad_scale.to(norm).reshape(())
    return clipping.bound(norm, max_norm, scale), scale


def scale_groups_(groups: Sequence[Group], factor: Tensor, scale: Tensor | float, with_stats: bool) -> GradientStats:
    """Multiply gradients by a factor, and return their statistics before that."""
    stats = {}
    for index, members, unique in groups:
        device = members[0].device
        if with_stats:
            stats[device] = DeviceStats(index, *choose(members).measure(members).statistics(scale))
        choose(members).scale_(unique, factor.to(device))
    return GradientStats(stats)


def list_gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Return the gradients of the parameters that have one."""
    return [gradient for parameter in parameters if (gradient := parameter.grad) is not None]


def _edit_by_device(gradients: Sequence[Tensor], edit_: Callable[[list[Tensor]], Tensor]) -> GradientStats:
    stats = {}
    for device, (index, members) in group_by_device(gradients).items():
        unique = list_unique(members)
        values = edit_(unique)
        if len(unique) < len(members):  # parameters that share a gradient
            columns = {id(member): column for column, member in enumerate(unique)}
            values = values[:, to_device([columns[id(member)] for member in members], torch.int64, values.device)]
        stats[device] = DeviceStats(index, *values)
    return GradientStats(stats)


def list_unique(tensors: list[Tensor]) -> list[Tensor]:
    """Return each tensor once; the hash of a tensor takes longer than its ``id``."""
    if len({*map(id, tensors)}) == len(tensors):
        return tensors
    return list({id(tensor): tensor for tensor in tensors}.values())
