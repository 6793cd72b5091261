"""Supported strategies, precisions and combinations of callbacks."""

from typing import TYPE_CHECKING, Any

from torch.amp import GradScaler

from lightning_znorm._lightning import MisconfigurationError, averages_models, nearest_class
from lightning_znorm.engine.transform import Transform

if TYPE_CHECKING:
    import lightning.pytorch as pl

_STRATEGIES = ("SingleDeviceStrategy", "DDPStrategy", "ModelParallelStrategy", "FSDPStrategy")
_PRECISIONS = {
    "Precision": ("32-true",),
    "MixedPrecision": ("16-mixed", "bf16-mixed"),
    "HalfPrecision": ("16-true", "bf16-true"),
    "DoublePrecision": ("64-true",),
    "FSDPPrecision": ("32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true"),
}


def refuse_unsupported(owner: str, strategy: Any, precision: Any, in_trainer: bool = True) -> None:
    """Raise if a strategy or precision plugin of a Trainer or of Fabric is not supported."""
    name = nearest_class(strategy)
    if name not in _STRATEGIES:
        raise MisconfigurationError(
            f"`{owner}` does not support `strategy={strategy.__class__.__name__}`: its gradients are not in `.grad`"
            " when an optimizer steps, or it is unknown where they are. For a model that fits on one device use"
            " `strategy='ddp'`, for a larger one `ModelParallelStrategy` (FSDP2, tensor parallelism) or"
            " `strategy='fsdp'`, or leave the transform out (`enabled=False`)."
        )
    if name == "FSDPStrategy" and not in_trainer:
        raise MisconfigurationError(
            f"`attach` does not support `strategy={strategy.__class__.__name__}` of Fabric: shapes and positions of its"
            " shards are in the wrapped module, which `attach` does not read. Use `ModelParallelStrategy` (FSDP2), or"
            f" `{owner}` as a callback of a Trainer."
        )
    if name == "FSDPStrategy" and not strategy.kwargs.get("use_orig_params"):
        raise MisconfigurationError(
            f"`{owner}` does not support `FSDPStrategy(use_orig_params=False)`: many parameters are one, and their"
            " statistics cannot be told apart. Use `use_orig_params=True`, the default."
        )
    if averages_models(strategy):
        raise MisconfigurationError(
            f"`{owner}` does not support `DDPStrategy(model_averaging_period=…)`: gradients differ between the"
            " ranks. Use `strategy='ddp'` without it."
        )
    if precision.precision not in _PRECISIONS.get(nearest_class(precision), ()):
        supported = ", ".join(f"'{value}'" for values in _PRECISIONS.values() for value in values)
        raise MisconfigurationError(
            f"`{owner}` does not support `precision={precision.precision!r}` ({type(precision).__name__}) yet. Use one"
            f" of {supported}, or leave the transform out (`enabled=False`)."
        )
    scaler = getattr(precision, "scaler", None)
    if scaler is not None and not isinstance(scaler, GradScaler):
        raise MisconfigurationError(
            f"`{owner}` does not support the scaler `{type(scaler).__name__}` of `{type(precision).__name__}`: it is"
            " unknown whether it has unscaled the gradients. Use `torch.amp.GradScaler` or a subclass of it."
        )


def refuse_twins(transform: Transform, trainer: "pl.Trainer") -> None:
    """Raise if the Trainer has the same transform twice."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    twins = [callback for callback in callbacks if isinstance(callback, transform._kind()) and callback.enabled]
    if len(twins) > 1:
        raise MisconfigurationError(
            f"The Trainer has {len(twins)} enabled `{transform._kind().__name__}` callbacks, which would transform each"
            " gradient twice. Keep one (or pass `enabled=False` to the others); look in `callbacks=`, in"
            " `configure_callbacks` of the LightningModule and, on the command line, in both `--znorm` and"
            " `--trainer.callbacks`."
        )


def scaler_of(trainer: "pl.Trainer") -> GradScaler | None:
    """Return the Trainer's GradScaler if it has one that is enabled."""
    scaler: GradScaler | None = getattr(trainer.strategy.precision_plugin, "scaler", None)
    return scaler if scaler is not None and scaler.is_enabled() else None
