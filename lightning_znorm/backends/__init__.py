"""Ways to transform a list of gradients in place, one module each; all agree with ``reference``.

Every backend has a function ``znorm_(gradients, eps, grad_scale) -> Tensor``. It edits the gradients (dense, real, on
one device) in place and returns their statistics before the edit as a tensor of shape ``(3, len(gradients))``: mean,
standard deviation and the cosine between the gradient before and after.
"""

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Protocol

import torch
from torch import Tensor

from lightning_znorm.backends import cpu, reference

__all__ = ["choose"]


class ZNormFunction(Protocol):
    """The function of a backend."""

    def __call__(self, gradients: Sequence[Tensor], eps: float, grad_scale: Tensor | None = None) -> Tensor:
        """Normalize the gradients in place and return their statistics."""


def choose(device: torch.device) -> ZNormFunction:
    """Return the ``znorm_`` of the fastest backend for a device."""
    if device.type == "cpu":
        return cpu.znorm_
    if device.type == "cuda" and find_spec("triton") is not None:
        return import_module("lightning_znorm.backends.triton").znorm_  # type: ignore[no-any-return]
    return reference.znorm_
