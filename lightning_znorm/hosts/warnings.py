"""What a gradient transform warns of."""

from typing import TYPE_CHECKING

from torch.optim import Optimizer

from lightning_znorm._lightning import rank_zero_warn

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from lightning_znorm.transform import GradientTransform


def warn_about_clipping(owner: "GradientTransform", trainer: "pl.Trainer") -> None:
    """Warn that the Trainer clips after a transform that gives each tensor the norm sqrt(numel)."""
    if trainer.gradient_clip_val:
        rank_zero_warn(
            f"`gradient_clip_val={trainer.gradient_clip_val}` clips what `{type(owner).__name__}` returns, not the raw"
            " gradient: clipping runs after the callback, and a normalized tensor has L2 norm sqrt(numel), so that"
            " clipping by norm shrinks nearly every step. Remove one of the two."
        )


def warn_about_missing_logger(owner: "GradientTransform", trainer: "pl.Trainer") -> None:
    """Warn that there is no logger to take the statistics."""
    if owner.log_stats and not trainer.loggers:
        rank_zero_warn(
            f"`log_stats={owner.log_stats!r}` of `{type(owner).__name__}` has no effect: the Trainer has no logger."
        )


def warn_about_bypass(owner: "GradientTransform", optimizer: Optimizer) -> None:
    """Warn that a step was taken past the Trainer."""
    rank_zero_warn(
        f"`{type(owner).__name__}` was bypassed: the optimizer `{type(optimizer).__name__}` made a step past the"
        " Trainer, with gradients that were not transformed. With manual optimization, step what `self.optimizers()`"
        " returns (not with `use_pl_optimizer=False`); in `optimizer_step` of the LightningModule, step the optimizer"
        " that it is given (not `optimizer.optimizer`)."
    )


def warn_about_idleness(owner: "GradientTransform", called: bool) -> None:
    """Warn that a whole training went by without one gradient transformed."""
    name = type(owner).__name__
    if not called:
        rank_zero_warn(f"`{name}` never ran: no optimizer step of this training went through the Trainer.")
    else:
        rank_zero_warn(
            f"`{name}` ran, but transformed no gradient in this training. Either no step was inside `start_step` and"
            " `stop_step`, or `exclude` and `min_ndim` left out every parameter, or the optimizer's parameters have no"
            " `.grad`, as with strategies that keep gradients elsewhere."
        )


def warn_about_skip(owner: "GradientTransform", parameter: str, step: int) -> None:
    """Warn of the first step that was skipped."""
    rank_zero_warn(
        f"`{type(owner).__name__}(nonfinite='skip')` skipped the optimizer step {step}: the gradient of parameter"
        f" `{parameter}` has an inf or NaN. Further steps are skipped without a warning, and counted."
    )
