"""A few small gradients through a backend, compared with float64: is it right on a device?"""

import torch
from torch import Tensor

from lightning_znorm.backends import reference
from lightning_znorm.backends.interface import Backend, CentralizeFunction, ZNormFunction

_SHAPES = ((1,), (5,), (64, 64), (17, 241), (3, 5000))  # a part of a tile, one, several
_EPS = 1e-6


def find_fault(backend: Backend, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return what is wrong with the results of a backend, ``None`` if nothing is. Waits for the device.

    Example::

        >>> from lightning_znorm.backends.choice import CPU
        >>> find_fault(CPU, torch.device("cpu"), torch.float32) is None
        True

    """
    found = _transform(backend.znorm_, backend.centralize_, device, dtype)
    expected = _transform(reference.znorm_, reference.centralize_, torch.device("cpu"), dtype)
    for name, tensors in found.items():
        tolerance = 8 * torch.finfo(dtype).eps
        for tensor, exact in zip(tensors, expected[name], strict=True):
            if not torch.allclose(tensor.cpu().double(), exact.double(), tolerance, tolerance, equal_nan=True):
                return f"the results of `{name}` are wrong"
    return None


def _transform(
    znorm_: ZNormFunction, centralize_: CentralizeFunction, device: torch.device, dtype: torch.dtype
) -> dict[str, list[Tensor]]:
    """Return transformed gradients and their statistics."""
    scale = torch.tensor([8.0], device=device)
    results = {}
    for name in ("znorm_", "znorm_ without centring", "centralize_"):
        gradients = _make_gradients(device, dtype)
        if name == "znorm_":
            stats = znorm_(gradients, _EPS)
        elif name == "centralize_":
            stats = centralize_(gradients, scale)
        else:
            stats = znorm_(gradients, _EPS, scale, center=False)
        # a mean that is not finite may be inf or NaN
        results[name] = [*gradients, torch.where(stats.isfinite(), stats, torch.nan)]
    return results


def _make_gradients(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    gradients = []
    for number, shape in enumerate(_SHAPES):
        count = torch.Size(shape).numel()
        values = torch.arange(count, dtype=torch.float64, device="cpu").mul_(number + 1).sin_().add_(0.1)
        gradients.append(values.view(shape).to(dtype).to(device))
    gradients[1][2] = torch.inf
    return gradients
