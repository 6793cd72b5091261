"""Gradients as they occur: where normal noise averages out, equal, few and rounded values all err the same way."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

LAYER = (32, 120, 1, 1)


def draw(name: str, size: int, mean: float = 0.0) -> tuple[Tensor, float]:
    """Return a flat float32 gradient and an eps to match its standard deviation.

    Args:
        name: Of a distribution.
        size: Number of elements.
        mean: Added to it, in units of its standard deviation.

    """
    values = DISTRIBUTIONS[name](size, torch.Generator().manual_seed(size)).double()
    std = values.std(correction=0).item()
    return values.add_(mean * std).float(), 1e-10 * std


def _normal(size: int, generator: torch.Generator) -> Tensor:
    return torch.randn(size, generator=generator, dtype=torch.float64)


def _share(size: int, generator: torch.Generator, share: float) -> Tensor:
    return torch.rand(size, generator=generator) < share


def _outlier(size: int, generator: torch.Generator) -> Tensor:
    values = _normal(size, generator)
    values[size // 3] = 1e5
    return values


def _outlier_first(size: int, generator: torch.Generator) -> Tensor:
    values = torch.full((size,), 0.7, dtype=torch.float64)
    values[0] = 3e3
    return values


def _near_the_maximum(size: int, generator: torch.Generator) -> Tensor:
    """The mean is 2.4e38, so that float32 does not hold the deviations of the negative ones from it."""
    return torch.where(_share(size, generator, 0.1), -3e38, 3e38)


def _layer(size: int, generator: torch.Generator) -> Tensor:
    """One sample's gradient of a squeeze-and-excite layer: an outer product, mostly of zeros; mean/std is -0.07."""
    rows = math.gcd(size, LAYER[0])
    errors = _normal(rows, generator) * _share(rows, generator, 0.3)
    errors[0] = 1.0
    activations = torch.relu(_normal(size // rows, generator))
    values = torch.outer(errors, activations).flatten()
    return values - values.mean() - 0.07 * values.std()


DISTRIBUTIONS: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "normal": _normal,
    "signs": lambda size, generator: _normal(size, generator).sign() * 0.1,
    "ternary": lambda size, generator: torch.randint(-1, 2, (size,), generator=generator) * 0.3,
    "few values": lambda size, generator: torch.randint(-3, 4, (size,), generator=generator) * 0.3,
    "rounded to bfloat16": lambda size, generator: (_normal(size, generator) / 3).bfloat16(),
    "mostly zeros": lambda size, generator: _share(size, generator, 0.02) * 0.7,
    "one outlier": _outlier,
    "an outlier, then equal values": _outlier_first,
    "a real layer": _layer,
    "near the maximum": _near_the_maximum,
    "denormal": lambda size, generator: _normal(size, generator) * 1e-39,
}
