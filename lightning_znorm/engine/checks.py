"""What a gradient transform refuses, before a step is lost."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from lightning_znorm._lightning import MisconfigurationException
from lightning_znorm.engine.selection import ParameterNames

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from lightning_znorm.transform import GradientTransform

_STRATEGIES = ("SingleDeviceStrategy", "DDPStrategy")
_PRECISIONS = {
    "Precision": ("32-true",),
    "MixedPrecision": ("16-mixed", "bf16-mixed"),
    "HalfPrecision": ("16-true", "bf16-true"),
    "DoublePrecision": ("64-true",),
}
_LIGHTNING_PACKAGES = ("lightning", "lightning_fabric", "pytorch_lightning")


def refuse_unsupported(owner: "GradientTransform", strategy: Any, precision: Any) -> None:
    """Raise if a strategy or precision plugin of a Trainer or of Fabric is not supported.

    Raises:
        MisconfigurationException: Naming the setting and the remedy.

    """
    name = type(owner).__name__
    if _nearest_lightning_class(strategy) not in _STRATEGIES:
        raise MisconfigurationException(
            f"`{name}` does not support `strategy={strategy.__class__.__name__}` yet: a parameter's gradient may be"
            " sharded or kept elsewhere there. Use one device or `strategy='ddp'`, or leave the transform out"
            " (`enabled=False`)."
        )
    if getattr(strategy, "_model_averaging_period", None) is not None:
        raise MisconfigurationException(
            f"`{name}` does not support `DDPStrategy(model_averaging_period=…)`: gradients differ between the ranks"
            " there. Use `strategy='ddp'` without it."
        )
    if precision.precision not in _PRECISIONS.get(_nearest_lightning_class(precision), ()):
        supported = ", ".join(f"'{value}'" for values in _PRECISIONS.values() for value in values)
        raise MisconfigurationException(
            f"`{name}` does not support `precision={precision.precision!r}` ({type(precision).__name__}) yet. Use one"
            f" of {supported}, or leave the transform out (`enabled=False`)."
        )
    scaler = getattr(precision, "scaler", None)
    if scaler is not None and not isinstance(scaler, torch.amp.GradScaler):
        raise MisconfigurationException(
            f"`{name}` does not support the scaler `{type(scaler).__name__}` of `{type(precision).__name__}`: whether"
            " it has unscaled the gradients is not known. Use `torch.amp.GradScaler` or a subclass of it."
        )


def refuse_twins(owner: "GradientTransform", trainer: "pl.Trainer") -> None:
    """Raise if the Trainer has the same transform twice.

    Raises:
        MisconfigurationException: With the places to look in.

    """
    twins = enabled_twins(owner, trainer)
    if len(twins) > 1:
        raise MisconfigurationException(
            f"The Trainer has {len(twins)} enabled `{owner._kind().__name__}` callbacks, which would transform each"
            " gradient twice. Keep one (or pass `enabled=False` to the others); look in `callbacks=`, in"
            " `configure_callbacks` of the LightningModule and, on the command line, in both `--znorm` and"
            " `--trainer.callbacks`."
        )


def enabled_twins(owner: "GradientTransform", trainer: "pl.Trainer") -> list[Any]:
    """Return the Trainer's enabled callbacks of the owner's kind."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, owner._kind()) and callback.enabled]


def refuse_attached(owner: "GradientTransform", optimizers: Iterable[Optimizer]) -> None:
    """Raise if the same transform is attached to one of the optimizers already.

    Raises:
        MisconfigurationException: With the remedy.

    """
    for optimizer in optimizers:
        for hook in getattr(optimizer, "_optimizer_step_pre_hooks", {}).values():
            if isinstance(getattr(hook, "transform", None), owner._kind()):
                raise MisconfigurationException(
                    f"A `{owner._kind().__name__}` is attached to the optimizer `{type(optimizer).__name__}` already;"
                    " a second one would transform each gradient twice. Keep one: `handle.remove()` undoes"
                    " `handle = attach(...)`."
                )


def refuse_optimizers(owner: "GradientTransform", optimizers: Iterable[Optimizer]) -> None:
    """Raise for an optimizer that is known to evaluate its closure more than once.

    Raises:
        MisconfigurationException: Naming the optimizer.

    """
    for optimizer in optimizers:
        if isinstance(optimizer, LBFGS):
            refuse_closure_reevaluation(owner, optimizer)


def refuse_parameters(
    owner: "GradientTransform",
    modules: Iterable[nn.Module],
    parameters: Iterable[Tensor],
    names: ParameterNames,
    is_selected: Callable[[Tensor], bool],
    under_scaler: bool = False,
) -> None:
    """Raise if a parameter will have a gradient that cannot be transformed.

    Args:
        owner: The transform.
        modules: All modules, as far as they are known, in which embeddings with sparse gradients are looked for.
        parameters: All parameters.
        names: Their names.
        is_selected: Whether the transform is to touch a parameter.
        under_scaler: Whether an enabled GradScaler multiplies the loss.

    Raises:
        MisconfigurationException: Naming the parameter and the remedy.

    """
    embeddings = (m for m in modules if isinstance(m, (nn.Embedding, nn.EmbeddingBag)) and m.sparse)
    sparse = {parameter for module in embeddings for parameter in module.parameters(recurse=False)}
    for parameter in parameters:
        if not parameter.requires_grad or not is_selected(parameter):
            continue
        refuse_flattened(owner, [parameter])
        kind = "sparse" if parameter in sparse else "complex" if parameter.dtype.is_complex else None
        if kind is not None:
            remedy = ", or make it dense (`sparse=False`)" if kind == "sparse" else ""
            raise MisconfigurationException(
                f"`{type(owner).__name__}` cannot transform the {kind} gradient of parameter `{names[parameter]}`."
                f" Leave it out with `exclude=[{names[parameter]!r}]`{remedy}."
            )
        if under_scaler and parameter.dtype == torch.float16:
            raise MisconfigurationException(
                f"`{type(owner).__name__}` does not support the float16 parameter `{names[parameter]}` under a"
                " GradScaler: transformed and scaled, its gradient would overflow. Keep the parameters in float32"
                " (`precision='16-mixed'` converts activations by itself), or use `precision='16-true'`."
            )


def refuse_flattened(owner: "GradientTransform", parameters: Iterable[Tensor]) -> None:
    """Raise if FSDP has flattened or sharded one of the parameters.

    Raises:
        MisconfigurationException: With the remedy.

    """
    if any("_fsdp_flattened" in vars(parameter) for parameter in parameters):
        raise MisconfigurationException(
            f"`{type(owner).__name__}` does not support parameters that FullyShardedDataParallel has flattened: their"
            " `.grad` holds a shard. Use one device or DistributedDataParallel."
        )


def refuse_capture(owner: "GradientTransform") -> None:
    """Raise if a CUDA graph captures this step and the transform would have to wait for the device in it.

    Raises:
        MisconfigurationException: Naming the argument.

    """
    if not torch.cuda.is_available() or not torch.cuda.is_current_stream_capturing():
        return
    for argument, harmless in (("nonfinite", "propagate"), ("log_stats", False)):
        if getattr(owner, argument) != harmless:
            raise MisconfigurationException(
                f"`{type(owner).__name__}({argument}={getattr(owner, argument)!r})` reads values from the device, which"
                f" a CUDA graph cannot capture. Use `{argument}={harmless!r}`."
            )


def refuse_closure_reevaluation(owner: "GradientTransform", optimizer: Optimizer) -> NoReturn:
    """Raise for an optimizer that evaluates loss and gradients more than once per step."""
    raise MisconfigurationException(
        f"`{type(owner).__name__}` does not support the optimizer `{type(optimizer).__name__}` here: its closure is"
        " evaluated several times per step, by the optimizer itself or by `optimizer_step` of the LightningModule, and"
        " the losses and gradients are compared, which a transform would falsify. Use an optimizer with one evaluation"
        " per step, such as Adam or SGD, or `enabled=False`."
    )


def _nearest_lightning_class(instance: object) -> str:
    """Return the name of the nearest of Lightning's own classes, so that a user's subclass counts as its parent."""
    # `__class__`, as the Trainer hands out weak proxies of its strategy
    for cls in instance.__class__.__mro__:
        if cls.__module__.partition(".")[0] in _LIGHTNING_PACKAGES:
            return cls.__name__
    return instance.__class__.__name__
