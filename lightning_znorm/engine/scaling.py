"""The scale of a GradScaler by which gradients are still multiplied."""

from typing import Any

from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer

from lightning_znorm._lightning import MisconfigurationError
from lightning_znorm._torch import is_unscaled, scale_of, unscales_in_step


def refuse_unknown_scaling(owner: str, optimizer: Optimizer) -> None:
    """Raise for a fused optimizer that does not say whether it divides by a GradScaler's scale."""
    if isinstance(optimizer, Optimizer) and unscales_in_step(optimizer) is None:
        raise MisconfigurationError(
            f"`{owner}` does not support the fused optimizer `{type(optimizer).__name__}`: it does not say whether"
            " it divides gradients by the scale of a GradScaler. Use `fused=False`. If it is a copy of another"
            " optimizer, create a new one instead: copies lose the attribute that says so."
        )


def find_pending_scale(scaler: GradScaler | None, optimizer: Optimizer) -> Tensor | None:
    """Return the scale by which the optimizer's gradients are still multiplied, ``None`` for none.

    Lightning and ``GradScaler.step`` unscale before a step, except for optimizers that unscale in their kernel.

    Raises:
        MisconfigurationError: If it is unknown whether the GradScaler has unscaled the gradients.

    """
    if scaler is None or not scaler.is_enabled():
        return None
    unscaled = is_unscaled(scaler, optimizer)
    if unscaled is None:
        raise MisconfigurationError(
            f"The scaler `{type(scaler).__name__}` does not say whether it has unscaled the gradients, unlike"
            " PyTorch's. Use another version of PyTorch, or train without a scaler (`precision='bf16-mixed'`)."
        )
    return None if unscaled else scale_of(scaler)


def find_pending_scale_in_step(optimizer: Optimizer, keywords: dict[str, Any]) -> Tensor | None:
    """Return the scale that ``GradScaler.step`` leaves to an optimizer's own step, ``None`` for none."""
    if not unscales_in_step(optimizer):
        return None  # unscaled already, whatever the attribute `grad_scale` is
    if "grad_scaler" in keywords:
        return find_pending_scale(keywords["grad_scaler"], optimizer)
    return getattr(optimizer, "grad_scale", None)


def scaler_skips_step(optimizer: Optimizer, keywords: dict[str, Any]) -> bool:
    """Return whether a GradScaler makes the optimizer skip its step if a gradient is not finite."""
    return "grad_scaler" in keywords or getattr(optimizer, "found_inf", None) is not None
