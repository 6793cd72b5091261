"""Gradient transforms as functions: lists of tensors in, statistics out."""

from lightning_znorm.backends.layouts import RankGroup
from lightning_znorm.functional.plain import (
    centralize_gradients_,
    clip_gradients_,
    list_gradients,
    znorm_gradients_,
)
from lightning_znorm.functional.sharded import (
    ShardedGradients,
    add_up,
    centralize_sharded_,
    clip_sharded_,
    collect_gradients,
    find_part,
    measure_moments,
    measure_norms,
    measure_rows,
    require_transformable_parts,
    znorm_sharded_,
)
from lightning_znorm.functional.stats import DeviceStats, GradientStats
from lightning_znorm.functional.transforms import centralize_, check_center, check_eps, znorm_

__all__ = [
    "DeviceStats",
    "GradientStats",
    "RankGroup",
    "ShardedGradients",
    "add_up",
    "centralize_",
    "centralize_gradients_",
    "centralize_sharded_",
    "check_center",
    "check_eps",
    "clip_gradients_",
    "clip_sharded_",
    "collect_gradients",
    "find_part",
    "list_gradients",
    "measure_moments",
    "measure_norms",
    "measure_rows",
    "require_transformable_parts",
    "znorm_",
    "znorm_gradients_",
    "znorm_sharded_",
]
