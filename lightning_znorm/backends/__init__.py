"""Implementations of the gradient transforms, one module each; all agree with ``reference``.

Every backend has a function ``znorm_(gradients, eps, grad_scale) -> Tensor``. It edits the gradients (dense, real, on
one device) in place and returns their statistics before the edit as a tensor of shape ``(3, len(gradients))``: mean,
standard deviation and the cosine between the gradient before and after. All but ``triton`` accept ``center=False``
and have ``centralize_(gradients, grad_scale)`` (for ``cpu`` in ``cpu_centralize``).

The two steps of ``znorm_`` can be called separately: ``measure(gradients) -> Moments`` edits nothing, and
``apply_(gradients, mean, factor)`` edits the gradients; :func:`.moments.compute_edit` computes mean and factor from the
moments.

Clipping consists of ``norm(gradients, norm_type)`` of all gradients together and ``scale_(gradients, factor)``, in
``clipping`` for any device and in ``cpu_clipping``.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from lightning_znorm.backends import clipping, cpu, cpu_centralize, cpu_clipping, generic
from lightning_znorm.backends.moments import Moments

__all__ = ["choose_centralize_", "choose_clipping", "choose_stepwise", "choose_znorm_"]


class ZNormFunction(Protocol):
    """The signature of ``znorm_``."""

    def __call__(
        self, gradients: list[Tensor], eps: float, grad_scale: Tensor | None = None, center: bool = True
    ) -> Tensor:
        """Normalize the gradients in place and return their statistics."""


class CentralizeFunction(Protocol):
    """The signature of ``centralize_``."""

    def __call__(self, gradients: list[Tensor], grad_scale: Tensor | None = None) -> Tensor:
        """Centralize the gradients in place and return their statistics."""


class StepwiseBackend(Protocol):
    """A backend with the two separate steps."""

    def measure(self, gradients: Sequence[Tensor]) -> Moments:
        """Return the moments of each gradient."""

    def apply_(self, gradients: Sequence[Tensor], mean: Tensor, factor: Tensor) -> None:
        """Subtract the mean from each gradient and multiply it by the factor, in place."""


class Clipping(Protocol):
    """The norm of all gradients on one device, and their multiplication by a factor."""

    def norm(self, gradients: Sequence[Tensor], norm_type: float) -> Tensor:
        """Return the norm of all gradients together."""

    def scale_(self, gradients: Sequence[Tensor], factor: Tensor) -> None:
        """Multiply each gradient by the factor, in place, unless it is NaN."""


def choose_stepwise(device: torch.device) -> StepwiseBackend:
    """Return the fastest backend with separate steps for a device."""
    return cpu if device.type == "cpu" else generic


def choose_znorm_(device: torch.device) -> ZNormFunction:
    """Return the ``znorm_`` of the fastest backend that was tested on a device.

    CUDA uses ``generic``, too: the kernel of ``triton`` has not run on a GPU yet, and always subtracts the mean.
    """
    return cpu.znorm_ if device.type == "cpu" else generic.znorm_


def choose_centralize_(device: torch.device) -> CentralizeFunction:
    """Return the ``centralize_`` of the fastest backend for a device."""
    return cpu_centralize.centralize_ if device.type == "cpu" else generic.centralize_


def choose_clipping(device: torch.device) -> Clipping:
    """Return the fastest norm and scaling for a device."""
    return cpu_clipping if device.type == "cpu" else clipping
