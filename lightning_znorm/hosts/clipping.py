"""Gradient clipping beside a transform that sets the norm or clips itself, a mistake: found and warned of."""

from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_znorm._lightning import rank_zero_warn
from lightning_znorm._torch import version_of
from lightning_znorm.engine.transform import Transform
from lightning_znorm.hosts.substitute import Substitute

if TYPE_CHECKING:
    import lightning.pytorch as pl


def not_with_clipping(transform: Transform) -> bool:
    """Say whether clipping beside the transform is a mistake."""
    return transform.sets_norm or transform.clips


def _why_not_after(transform: Transform) -> str:
    if transform.clips:
        return "which clips already"
    return "and a normalized tensor has L2 norm sqrt(numel), so that clipping by norm shrinks nearly every step"


def _why_not_before(transform: Transform) -> str:
    name = type(transform).__name__
    if transform.clips:
        return f"is one clipping too many: `{name}` clips when the optimizer steps"
    return (
        f"has no lasting effect: it runs before `{name}`, which sets the norm of each gradient to sqrt(numel) when the"
        " optimizer steps"
    )


class ClippingWatch:
    """Warns once, in the course of a ``fit``, of clipping that the LightningModule does by itself.

    Args:
        transform: The transform.
        pl_module: The module that is trained.

    """

    def __init__(self, transform: Transform, pl_module: "pl.LightningModule") -> None:
        self._transform = transform
        self._module = type(pl_module).__name__
        self._transformed: list[Tensor] = []
        self._has_looked = self._is_clipping = self._has_warned = False
        self._substitutes = [
            Substitute(pl_module, "configure_gradient_clipping", around=self._configure_gradient_clipping),
            Substitute(pl_module, "clip_gradients", around=self._clip_gradients),
        ]

    def see(self, transformed: list[Tensor]) -> None:
        """Have a look, in the first such step, at whether gradients that were just transformed will be changed."""
        if not self._has_looked:
            self._transformed, self._has_looked = transformed, True

    def close(self) -> None:
        """Give the module its methods back."""
        for substitute in self._substitutes:
            substitute.release()
        self._transformed = []

    def _configure_gradient_clipping(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        transformed, self._transformed = self._transformed, []
        before = None if self._has_warned else [version_of(parameter.grad) for parameter in transformed]
        self._is_clipping = True
        try:
            result = original(*args, **kwargs)
        finally:
            self._is_clipping = False
        if before is not None and before != [version_of(parameter.grad) for parameter in transformed]:
            self._warn(
                f"`configure_gradient_clipping` of `{self._module}` changes what `{type(self._transform).__name__}`"
                " returns, not the raw gradient: it runs after the callback,"
                f" {_why_not_after(self._transform)}. Remove one of the two."
            )
        return result

    def _clip_gradients(self, original: Any, optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
        clip_val = args[0] if args else kwargs.get("gradient_clip_val")
        if clip_val and not self._is_clipping and not self._has_warned:
            reason = _why_not_before(self._transform)
            self._warn(f"`self.clip_gradients` in `{self._module}` {reason}. Remove one of the two.")
        return original(optimizer, *args, **kwargs)

    def _warn(self, message: str) -> None:
        self._has_warned = True
        rank_zero_warn(message)


def warn_about_clip_val(transform: Transform, trainer: "pl.Trainer") -> None:
    """Warn that the Trainer clips after a transform beside which that is a mistake."""
    if trainer.gradient_clip_val and not_with_clipping(transform):
        rank_zero_warn(
            f"`gradient_clip_val={trainer.gradient_clip_val}` clips what `{type(transform).__name__}` returns, not the"
            f" raw gradient: clipping runs after the callback, {_why_not_after(transform)}. Remove one of the two."
        )
