"""Ways to transform a list of gradients in place, one module each; all agree with ``reference``.

Every backend has a function ``znorm_(gradients, eps, grad_scale) -> Tensor``. It edits the gradients (dense, real, on
one device) in place and returns their statistics before the edit as a tensor of shape ``(3, len(gradients))``: mean,
standard deviation and the cosine between the gradient before and after. All but ``triton`` take ``center=False``, too,
and have ``centralize_(gradients, grad_scale)`` (that of ``cpu`` is in ``cpu_centralize``).

The same in two verbs, for where something comes in between, is ``measure(gradients) -> Moments``, which edits nothing,
and ``apply_(gradients, mean, factor)``; :func:`.moments.conclude` makes the arguments of the latter from the former.

Clipping needs less: ``norm(gradients, norm_type)`` of all together and ``scale_(gradients, factor)``, in ``clipping``
for any device and in ``cpu_clipping``.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from lightning_znorm.backends import clipping, cpu, cpu_centralize, cpu_clipping, generic
from lightning_znorm.backends.moments import Moments

__all__ = ["choose_centralize_", "choose_clipping", "choose_verbs", "choose_znorm_"]


class ZNormFunction(Protocol):
    """How a backend normalizes."""

    def __call__(
        self, gradients: list[Tensor], eps: float, grad_scale: Tensor | None = None, center: bool = True
    ) -> Tensor:
        """Normalize the gradients in place and return their statistics."""


class CentralizeFunction(Protocol):
    """How a backend centralizes."""

    def __call__(self, gradients: list[Tensor], grad_scale: Tensor | None = None) -> Tensor:
        """Centralize the gradients in place and return their statistics."""


class Verbs(Protocol):
    """A backend in two verbs."""

    def measure(self, gradients: Sequence[Tensor]) -> Moments:
        """Return the moments of each gradient."""

    def apply_(self, gradients: Sequence[Tensor], mean: Tensor, factor: Tensor) -> None:
        """Subtract the mean from each gradient and multiply it by the factor, in place."""


class Clipping(Protocol):
    """A norm of all gradients on one device, and what bounds it."""

    def norm(self, gradients: Sequence[Tensor], norm_type: float) -> Tensor:
        """Return the norm of all gradients together."""

    def scale_(self, gradients: Sequence[Tensor], factor: Tensor) -> None:
        """Multiply each gradient by the factor, in place, unless it is NaN."""


def choose_verbs(device: torch.device) -> Verbs:
    """Return the fastest backend for a device that has the two verbs."""
    return cpu if device.type == "cpu" else generic


def choose_znorm_(device: torch.device) -> ZNormFunction:
    """Return the ``znorm_`` of the fastest backend that has been proven on a device.

    The kernel of ``triton`` has not run on a GPU yet, and always centres; CUDA is ``generic``, too.
    """
    return cpu.znorm_ if device.type == "cpu" else generic.znorm_


def choose_centralize_(device: torch.device) -> CentralizeFunction:
    """Return the ``centralize_`` of the fastest backend for a device."""
    return cpu_centralize.centralize_ if device.type == "cpu" else generic.centralize_


def choose_clipping(device: torch.device) -> Clipping:
    """Return the fastest norm and scaling for a device."""
    return cpu_clipping if device.type == "cpu" else clipping
