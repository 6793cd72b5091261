"""Warnings about gradient clipping together with a transform that sets the norm or clips."""

from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_znorm._lightning import rank_zero_warn
from lightning_znorm._torch import version_of
from lightning_znorm.engine.transform import Transform
from lightning_znorm.hosts.substitute import Substitute

if TYPE_CHECKING:
    import lightning.pytorch as pl


def conflicts_with_clipping(transform: Transform) -> bool:
    """Return whether clipping together with the transform is a mistake."""
    return transform.sets_norm or transform.clips


def _explain_clipping_after(transform: Transform) -> str:
    if transform.clips:
        return "which clips already"
    return "and a normalized tensor has L2 norm sqrt(numel), so that clipping by norm shrinks nearly every step"


def _explain_clipping_before(transform: Transform) -> str:
    name = type(transform).__name__
    if transform.clips:
        return f"is one clipping too many: `{name}` clips when the optimizer steps"
    return (
        f"has no lasting effect: it runs before `{name}`, which sets the norm of each gradient to sqrt(numel) when the"
        " optimizer steps"
    )


class ClippingWatch:
    """Warns once, during a ``fit``, about clipping by the LightningModule."""

    def __init__(self, transform: Transform, pl_module: "pl.LightningModule") -> None:
        self._transform = transform
        self._module = type(pl_module).__name__
        self._transformed: list[Tensor] = []
        self._has_checked = self._is_clipping = self._has_warned = False
        self._substitutes = [
            Substitute(pl_module, "configure_gradient_clipping", wrapper=self._configure_gradient_clipping),
            Substitute(pl_module, "clip_gradients", wrapper=self._clip_gradients),
        ]

    def expect_clipping(self, transformed: list[Tensor]) -> None:
        """Check, once, whether the module will clip the gradients of parameters that were just transformed."""
        if not self._has_checked:
            self._transformed, self._has_checked = transformed, True

    def close(self) -> None:
        """Restore the methods of the module."""
        for substitute in self._substitutes:
            substitute.release()
        self._transformed = []

    def _configure_gradient_clipping(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        transformed, self._transformed = self._transformed, []
        versions = None if self._has_warned else [version_of(parameter.grad) for parameter in transformed]
        self._is_clipping = True
        try:
            result = original(*args, **kwargs)
        finally:
            self._is_clipping = False
        if versions is not None and versions != [version_of(parameter.grad) for parameter in transformed]:
            self._warn(
                f"`configure_gradient_clipping` of `{self._module}` changes what `{type(self._transform).__name__}`"
                " returns, not the raw gradient: it runs after the callback,"
                f" {_explain_clipping_after(self._transform)}. Remove one of the two."
            )
        return result

    def _clip_gradients(self, original: Any, optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
        clip_val = args[0] if args else kwargs.get("gradient_clip_val")
        if clip_val and not self._is_clipping and not self._has_warned:
            reason = _explain_clipping_before(self._transform)
            self._warn(f"`self.clip_gradients` in `{self._module}` {reason}. Remove one of the two.")
        return original(optimizer, *args, **kwargs)

    def _warn(self, message: str) -> None:
        self._has_warned = True
        rank_zero_warn(message)


def warn_about_clip_val(transform: Transform, trainer: "pl.Trainer") -> None:
    """Warn if the Trainer clips after a transform that conflicts with clipping."""
    if trainer.gradient_clip_val and conflicts_with_clipping(transform):
        rank_zero_warn(
            f"`gradient_clip_val={trainer.gradient_clip_val}` clips what `{type(transform).__name__}` returns, not the"
            f" raw gradient: clipping runs after the callback, {_explain_clipping_after(transform)}. Remove one of"
            " the two."
        )
