"""Whether gradients are still multiplied by the scale of a GradScaler, and by how much."""

from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.amp import GradScaler
from torch.amp.grad_scaler import OptState
from torch.optim import Optimizer

if TYPE_CHECKING:
    import lightning.pytorch as pl


def scaler_of(trainer: "pl.Trainer") -> GradScaler | None:
    """Return the Trainer's GradScaler if it has one that is enabled."""
    scaler: GradScaler | None = getattr(trainer.strategy.precision_plugin, "scaler", None)
    return scaler if scaler is not None and scaler.is_enabled() else None


def scale_in_gradients(scaler: GradScaler | None, optimizer: Optimizer) -> Tensor | None:
    """Return the scale by which the optimizer's gradients are still multiplied, ``None`` for none.

    Lightning and ``GradScaler.step`` unscale before a step, except for optimizers that do it in their kernel.
    """
    if scaler is None or not scaler.is_enabled():
        return None
    state = scaler._per_optimizer_states.get(id(optimizer))
    if state is not None and state["stage"] is not OptState.READY:
        return None
    # `get_scale()` would wait for the device
    return scaler._get_scale_async()


def scale_given_to_step(optimizer: Optimizer, keywords: dict[str, Any]) -> Tensor | None:
    """Return the scale that ``GradScaler.step`` leaves to an optimizer's own step, ``None`` for none.

    Args:
        optimizer: The optimizer that is about to step.
        keywords: The keyword arguments of its ``step``.

    """
    if not getattr(optimizer, "_step_supports_amp_scaling", False):
        return None  # unscaled already; what the attribute `grad_scale` says is not looked at
    if "grad_scaler" in keywords:
        return scale_in_gradients(keywords["grad_scaler"], optimizer)
    return getattr(optimizer, "grad_scale", None)


def scaler_skips_step(optimizer: Optimizer, keywords: dict[str, Any]) -> bool:
    """Say whether a GradScaler has told the optimizer to skip its step if a gradient is not finite."""
    return "grad_scaler" in keywords or getattr(optimizer, "found_inf", None) is not None
