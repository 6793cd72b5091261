"""Gradient clipping by others as methods of `lightning-znorm compare`: AGC of timm, and AutoClip.

For `--compare.methods none,znorm,examples.other_methods.AGC,examples.other_methods.AutoClip`. Any callback of Lightning
is a method, by its class path; these two make callbacks of a function and of a class.
"""

from typing import Any

from autoclip.torch import QuantileClip
from lightning.pytorch import Callback
from timm.utils.agc import adaptive_clip_grad


class AGC(Callback):
    """Adaptive gradient clipping: each unit's norm is at most a share of the norm of its weights.

    Args:
        clip_factor: The share.
        eps: Smallest norm of weights that is assumed.

    """

    def __init__(self, clip_factor: float = 0.01, eps: float = 1e-3) -> None:
        self.clip_factor, self.eps = clip_factor, eps

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Clip the gradients that the optimizer receives."""
        adaptive_clip_grad(pl_module.parameters(), self.clip_factor, self.eps)


class AutoClip(Callback):
    """Clip the norm of all gradients to a quantile of the norms so far.

    Args:
        quantile: The quantile.
        history_length: Number of norms that are kept.

    """

    def __init__(self, quantile: float = 0.1, history_length: int = 10_000) -> None:
        self.quantile, self.history_length = quantile, history_length

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin with no norms."""
        self.clipper = QuantileClip(pl_module.parameters(), self.quantile, self.history_length, global_threshold=True)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Clip the gradients that the optimizer receives."""
        self.clipper.step()
