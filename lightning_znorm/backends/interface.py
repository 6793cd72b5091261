"""The functions that every backend has."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from lightning_znorm.backends.moments import Moments


class MeasureFunction(Protocol):
    """The signature of ``measure``."""

    def __call__(self, gradients: Sequence[Tensor]) -> Moments:
        """Return the moments of each gradient."""


class ApplyFunction(Protocol):
    """The signature of ``apply_``."""

    def __call__(self, gradients: Sequence[Tensor], mean: Tensor, factor: Tensor) -> None:
        """Subtract the mean from each gradient and multiply it by the factor, in place."""


class ZNormFunction(Protocol):
    """The signature of ``znorm_``."""

    def __call__(
        self, gradients: Sequence[Tensor], eps: float, grad_scale: Tensor | None = None, center: bool = True
    ) -> Tensor:
        """Normalize the gradients in place and return their statistics."""


class CentralizeFunction(Protocol):
    """The signature of ``centralize_``."""

    def __call__(self, gradients: Sequence[Tensor], grad_scale: Tensor | None = None) -> Tensor:
        """Centralize the gradients in place and return their statistics."""


class NormFunction(Protocol):
    """The signature of ``norm``."""

    def __call__(self, gradients: Sequence[Tensor], norm_type: float) -> Tensor:
        """Return the norm of all gradients together."""


class ScaleFunction(Protocol):
    """The signature of ``scale_``."""

    def __call__(self, gradients: Sequence[Tensor], factor: Tensor) -> None:
        """Multiply each gradient by the factor, in place, unless it is NaN."""


@dataclass(frozen=True)
class Backend:
    """The functions of a backend, which :mod:`lightning_znorm.backends` describes.

    Attributes:
        name: Its name for users.

    """

    name: str
    measure: MeasureFunction
    apply_: ApplyFunction
    znorm_: ZNormFunction
    centralize_: CentralizeFunction
    norm: NormFunction
    scale_: ScaleFunction
