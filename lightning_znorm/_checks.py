"""What a gradient transform refuses in a Trainer, and what it warns of, before a step is lost."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from lightning_znorm._compat import MisconfigurationException, rank_zero_warn
from lightning_znorm._names import ParameterNames

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from lightning_znorm.transform import GradientTransform

_STRATEGIES = ("SingleDeviceStrategy", "DDPStrategy")
_PRECISIONS = {"Precision": "32-true", "MixedPrecision": "bf16-mixed"}
_LIGHTNING_PACKAGES = ("lightning", "pytorch_lightning")


def refuse_unsupported(owner: "GradientTransform", trainer: "pl.Trainer") -> None:
    """Raise if the Trainer's strategy or precision is not supported.

    Raises:
        MisconfigurationException: Naming the setting and the remedy.

    """
    name = type(owner).__name__
    strategy = _nearest_lightning_class(trainer.strategy)
    if strategy not in _STRATEGIES:
        raise MisconfigurationException(
            f"`{name}` does not support `strategy={type(trainer.strategy).__name__}` yet: a parameter's gradient may be"
            " sharded or kept elsewhere there. Use one device or `strategy='ddp'`, or leave the callback out"
            " (`enabled=False`)."
        )
    if getattr(trainer.strategy, "_model_averaging_period", None) is not None:
        raise MisconfigurationException(
            f"`{name}` does not support `DDPStrategy(model_averaging_period=…)`: gradients differ between the ranks"
            " there. Use `strategy='ddp'` without it."
        )
    plugin = trainer.strategy.precision_plugin
    precision = plugin.precision
    if _PRECISIONS.get(_nearest_lightning_class(plugin)) != precision or getattr(plugin, "scaler", None) is not None:
        reason = " (its GradScaler keeps the gradients scaled for fused optimizers)" if precision == "16-mixed" else ""
        raise MisconfigurationException(
            f"`{name}` does not support `precision={precision!r}` ({type(plugin).__name__}) yet{reason}. Use"
            " `precision='32-true'` or `precision='bf16-mixed'`, or leave the callback out (`enabled=False`)."
        )


def refuse_manual_optimization(owner: "GradientTransform", pl_module: "pl.LightningModule") -> None:
    """Raise if the module steps its optimizers itself; it may only say so in its own ``setup``.

    Raises:
        MisconfigurationException: With the remedy.

    """
    name = type(owner).__name__
    if not pl_module.automatic_optimization:
        raise MisconfigurationException(
            f"`{name}` does not support manual optimization yet (`{type(pl_module).__name__}` sets"
            " `automatic_optimization = False`). In `training_step`, call `lightning_znorm.znorm_(parameters)` before"
            " `optimizer.step()` instead."
        )


def refuse_untransformable(
    owner: "GradientTransform",
    trainer: "pl.Trainer",
    pl_module: "pl.LightningModule",
    names: ParameterNames,
    is_selected: Callable[[Tensor], bool],
) -> None:
    """Raise if an optimizer re-evaluates its closure or a parameter will have a sparse or complex gradient.

    Raises:
        MisconfigurationException: Naming the optimizer or the parameter, and the remedy.

    """
    for optimizer in trainer.optimizers:
        if isinstance(optimizer, LBFGS):
            refuse_closure_reevaluation(owner, optimizer)
    for module in pl_module.modules():
        sparse = isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse
        for parameter in module.parameters(recurse=False):
            kind = "sparse" if sparse else "complex" if parameter.dtype.is_complex else None
            if kind is not None and parameter.requires_grad and is_selected(parameter):
                remedy = ", or make it dense (`sparse=False`)" if sparse else ""
                raise MisconfigurationException(
                    f"`{type(owner).__name__}` cannot transform the {kind} gradient of parameter `{names[parameter]}`."
                    f" Leave it out with `exclude=[{names[parameter]!r}]`{remedy}."
                )


def refuse_closure_reevaluation(owner: "GradientTransform", optimizer: Optimizer) -> NoReturn:
    """Raise for an optimizer that evaluates loss and gradients more than once per step."""
    raise MisconfigurationException(
        f"`{type(owner).__name__}` does not support the optimizer `{type(optimizer).__name__}` here: its closure is"
        " evaluated several times per step, by the optimizer itself or by `optimizer_step` of the LightningModule, and"
        " the losses and gradients are compared, which a transform would falsify. Use an optimizer with one evaluation"
        " per step, such as Adam or SGD, or `enabled=False`."
    )


def warn_about_clipping(owner: "GradientTransform", trainer: "pl.Trainer") -> None:
    """Warn that the Trainer clips after the transform."""
    if trainer.gradient_clip_val:
        rank_zero_warn(
            f"`gradient_clip_val={trainer.gradient_clip_val}` clips what `{type(owner).__name__}` returns, not the raw"
            " gradient: clipping runs after the callback, and a normalized tensor has L2 norm sqrt(numel), so that"
            " clipping by norm shrinks nearly every step. Remove one of the two."
        )


def warn_about_idleness(owner: "GradientTransform", called: bool) -> None:
    """Warn that a whole training went by without one gradient transformed."""
    name = type(owner).__name__
    if not called:
        rank_zero_warn(
            f"`{name}` never ran: no optimizer step of this training went through the Trainer. In `optimizer_step` of"
            " the LightningModule, step the optimizer that it is given, not the raw one behind it"
            " (`optimizer.optimizer`)."
        )
    else:
        rank_zero_warn(
            f"`{name}` ran, but transformed no gradient in this training. Either no step was inside `start_step` and"
            " `stop_step`, or `exclude` and `min_ndim` left out every parameter, or the optimizer's parameters have no"
            " `.grad`, as with strategies that keep gradients elsewhere."
        )


def warn_about_missing_logger(owner: "GradientTransform", trainer: "pl.Trainer") -> None:
    """Warn that there is no logger to take the statistics."""
    if not trainer.loggers:
        rank_zero_warn(
            f"`log_stats={owner.log_stats!r}` of `{type(owner).__name__}` has no effect: the Trainer has no logger."
        )


def _nearest_lightning_class(instance: object) -> str:
    """Return the name of the nearest of Lightning's own classes, so that a user's subclass counts as its parent."""
    for cls in type(instance).__mro__:
        if cls.__module__.partition(".")[0] in _LIGHTNING_PACKAGES:
            return cls.__name__
    return type(instance).__name__
