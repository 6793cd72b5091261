"""Ways to transform a list of gradients in place, one module each; all agree with ``reference``.

Every backend has a function ``znorm_(gradients, eps, grad_scale) -> Tensor``. It edits the gradients (dense, real, on
one device) in place and returns their statistics before the edit as a tensor of shape ``(3, len(gradients))``: mean,
standard deviation and the cosine between the gradient before and after.
"""

from collections.abc import Sequence
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
    return cpu.znorm_ if device.type == "cpu" else reference.znorm_
