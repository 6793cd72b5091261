"""A few small gradients through a backend, compared with float64: is it right on a device?"""

import torch
from torch import Tensor

from lightning_znorm.backends import reference
from lightning_znorm.backends.interface import Backend

REFERENCE = Backend(
    "reference",
    reference.measure,
    reference.apply_,
    reference.znorm_,
    reference.centralize_,
    reference.norm,
    reference.scale_,
)
_SHAPES = ((1,), (5,), (64, 64), (17, 241), (3, 5000))  # a part of a tile, one, several
_NOT_FINITE = 1  # the gradient with an inf
_EPS = 1e-6
_TOLERANCE = 1e-5  # of statistics, and of float32


def find_fault(backend: Backend, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return what is wrong with the results of a backend, ``None`` if nothing is. Waits for the device.

    Example::

        >>> from lightning_znorm.backends.choice import CPU
        >>> find_fault(CPU, torch.device("cpu"), torch.float32) is None
        True

    """
    expected = _transform(REFERENCE, torch.device("cpu"), dtype)
    for name, (gradients, stats) in _transform(backend, device, dtype).items():
        exact_gradients, exact_stats = expected[name]
        of_stats = _TOLERANCE if dtype != torch.float64 else 1e-12
        of_gradients = max(2 * torch.finfo(dtype).eps, of_stats)
        if not _are_close(stats, exact_stats, of_stats):
            return f"the statistics of `{name}` are wrong"
        if not all(_are_close(*pair, of_gradients) for pair in zip(gradients, exact_gradients, strict=True)):
            return f"the results of `{name}` are wrong"
    return None


def _are_close(found: Tensor, exact: Tensor, tolerance: float) -> bool:
    return torch.allclose(found.cpu().double(), exact.double(), tolerance, tolerance, equal_nan=True)


def _transform(backend: Backend, device: torch.device, dtype: torch.dtype) -> dict[str, tuple[list[Tensor], Tensor]]:
    """Return transformed gradients and their statistics."""
    scale = torch.tensor([8.0], device=device)
    results = {}
    for name in ("znorm_", "znorm_ without centring", "centralize_", "measure and apply_"):
        gradients = _make_gradients(device, dtype)
        if name == "znorm_":
            stats = backend.znorm_(gradients, _EPS)
        elif name == "znorm_ without centring":
            stats = backend.znorm_(gradients, _EPS, scale, center=False)
        elif name == "centralize_":
            stats = backend.centralize_(gradients, scale)
        else:
            moments = backend.measure(gradients)
            stats = torch.stack(moments.statistics())
            factor = torch.zeros_like(moments.mean)
            factor.view(-1, len(gradients))[0] = 0.5
            factor[..., _NOT_FINITE] = torch.nan  # leaves the gradient unchanged
            backend.apply_(gradients, moments.mean, factor)
        # a mean that is not finite may be inf or NaN
        results[name] = gradients, torch.where(stats.isfinite(), stats, torch.nan)
    return results


def _make_gradients(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    gradients = []
    for number, shape in enumerate(_SHAPES):
        count = torch.Size(shape).numel()
        values = torch.arange(count, dtype=torch.float64, device="cpu").mul_(number + 1).sin_().add_(0.1)
        gradients.append(values.view(shape).to(dtype).to(device))
    gradients[_NOT_FINITE][2] = torch.inf
    return gradients
