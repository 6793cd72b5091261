"""Lightning under its two names, ``lightning.pytorch`` and ``pytorch_lightning``, and the private attributes used here.

Where a version of Lightning lacks an attribute, a public one replaces it, or the configuration is refused.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lightning_znorm.errors import MissingPackageError, ZNormError

if TYPE_CHECKING:
    import lightning.pytorch as pl

__all__ = [
    "Callback",
    "MisconfigurationError",
    "averages_models",
    "batches_that_stepped",
    "find_classes",
    "find_logged_hyperparameters",
    "get_logger_arguments",
    "get_rank",
    "get_start_method",
    "import_all",
    "import_lightning",
    "is_logging_due",
    "nearest_class",
    "rank_zero_warn",
    "restart_epoch",
    "set_logger_arguments",
    "set_rank",
    "unwrap_fabric_module",
    "unwrap_optimizer",
]

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")
_BATCH_COUNT, _LOGGER_CONNECTOR, _DATA_FETCHER = "_batches_that_stepped", "_logger_connector", "_data_fetcher"
_RESTARTING = "_restarting"
# attributes of loggers that keep an argument, which has no public setter, until they create something
_LOGGER_ATTRIBUTES = {"version": "_version", "run_name": "_run_name", "run_id": "_run_id", "tags": "tags"}
_WANDB_ARGUMENTS, _WANDB_ID, _LOGS_HYPERPARAMETERS = "_wandb_init", "_id", "_log_hyperparams"
_TOP_LEVEL_PACKAGES = ("lightning", "lightning_fabric", "pytorch_lightning")
_OPTIMIZER_WRAPPERS = {
    "lightning.fabric.wrappers._FabricOptimizer",
    "lightning_fabric.wrappers._FabricOptimizer",
    "lightning.pytorch.core.optimizer.LightningOptimizer",
    "pytorch_lightning.core.optimizer.LightningOptimizer",
}


def import_all(module: str) -> list[ModuleType]:
    """Import ``module`` (the package itself if it is empty) from each installed Lightning package."""
    modules = [
        import_module(f"{package}.{module}".rstrip("."))
        for package in _PACKAGES
        if find_spec(package.partition(".")[0]) is not None
    ]
    if not modules:
        raise MissingPackageError("lightning_znorm needs PyTorch Lightning. Install it: `pip install lightning`.")
    return modules


def import_lightning(module: str) -> ModuleType:
    """Import ``module`` from ``lightning.pytorch``, or from ``pytorch_lightning`` where only that is installed."""
    return import_all(module)[0]


def find_classes(module: str, *names: str) -> tuple[Any, ...]:
    """Return the classes with these names from each installed Lightning package, for use with ``isinstance``."""
    return tuple(getattr(imported, name) for imported in import_all(module) for name in names)


def _derive_class(module: str, name: str) -> type:
    """Return a class that derives from ``name`` in every installed Lightning package."""
    bases = tuple(dict.fromkeys(getattr(imported, name) for imported in import_all(module)))
    return type(name, bases, {"__module__": __name__, "__doc__": bases[0].__doc__})


if TYPE_CHECKING:
    from lightning.fabric.utilities.exceptions import MisconfigurationException as _Misconfiguration
    from lightning.pytorch.callbacks import Callback
    from lightning_utilities.core.rank_zero import rank_zero_only, rank_zero_warn
else:
    rank_zero_only = import_lightning("utilities.rank_zero").rank_zero_only
    rank_zero_warn = import_lightning("utilities.rank_zero").rank_zero_warn
    Callback = _derive_class("callbacks", "Callback")
    _Misconfiguration = _derive_class("utilities.exceptions", "MisconfigurationException")


class MisconfigurationError(ZNormError, _Misconfiguration):
    """This package does not support a LightningModule, an optimizer or a setting of the Trainer.

    ``except MisconfigurationException`` catches it under either of Lightning's names.
    """


def set_rank(rank: int) -> None:
    """Tell Lightning the rank of this process, which a forked one does not read from its environment."""
    rank_zero_only.rank = rank  # type: ignore[attr-defined]


def get_rank() -> int:
    """Return the rank of this process as Lightning knows it."""
    rank: int = rank_zero_only.rank  # type: ignore[attr-defined]
    return rank


def get_start_method(strategy: Any) -> str:
    """Return how a ``DDPStrategy`` starts its processes: ``"popen"`` if this version of Lightning does not say."""
    return str(getattr(strategy, "_start_method", "popen"))


def batches_that_stepped(trainer: "pl.Trainer") -> int:
    """Return the number of the current step as the loggers of ``self.log`` count them."""
    loop = trainer.fit_loop.epoch_loop
    count: int = getattr(loop, _BATCH_COUNT) if hasattr(loop, _BATCH_COUNT) else trainer.global_step
    return count


def restart_epoch(trainer: "pl.Trainer") -> None:
    """Begin the epoch of a training that was resumed from a checkpoint of its start as if it was not resumed.

    The data loaders draw again from the random number generators. In a version of Lightning without this attribute
    they keep the order that they have drawn already.
    """
    # its public name keeps loops that count steps restarting
    setattr(trainer.fit_loop, _RESTARTING, False)
    trainer.fit_loop.epoch_loop.restarting = False
    fetcher = getattr(trainer.fit_loop, _DATA_FETCHER, None)
    if fetcher is not None:
        iter(fetcher)


def is_logging_due(trainer: "pl.Trainer") -> bool:
    """Return whether the module's ``self.log`` reaches the loggers in the current step."""
    due: bool | None = getattr(getattr(trainer, _LOGGER_CONNECTOR, None), "should_update_logs", None)
    if due is not None:
        return due
    interval: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return (batches_that_stepped(trainer) + 1) % interval == 0


def averages_models(strategy: Any) -> bool:
    """Return whether ``DDPStrategy(model_averaging_period=…)`` lets the weights of the ranks differ."""
    return getattr(strategy, "_model_averaging_period", None) is not None


def nearest_class(instance: object) -> str:
    """Return the name of the nearest class of Lightning, so that a user's subclass counts as its parent."""
    # `__class__`, because the Trainer returns weak proxies of its strategy
    for cls in instance.__class__.__mro__:
        if cls.__module__.partition(".")[0] in _TOP_LEVEL_PACKAGES:
            return cls.__name__
    return instance.__class__.__name__


def unwrap_optimizer(optimizer: Any) -> tuple[Any, Any] | None:
    """Return the optimizer inside Lightning's or Fabric's wrapper, and the strategy; ``None`` for any other object.

    Raises:
        MisconfigurationError: If the wrapper lacks these attributes.

    """
    # by name, to import no package
    if not {f"{cls.__module__}.{cls.__qualname__}" for cls in type(optimizer).__mro__} & _OPTIMIZER_WRAPPERS:
        return None
    if not hasattr(optimizer, "_optimizer") or not hasattr(optimizer, "_strategy"):
        raise MisconfigurationError(
            f"The optimizer inside `{type(optimizer).__name__}` of this version of Lightning cannot be found. Attach"
            " to the optimizer before `fabric.setup`."
        )
    return optimizer._optimizer, optimizer._strategy


def unwrap_fabric_module(module: Any) -> Any | None:
    """Return the module inside Fabric's wrapper, ``None`` for any other module."""
    return module._modules.get("_original_module")


def get_logger_arguments(logger: Any) -> dict[str, Any]:
    """Return the arguments of a logger that :func:`set_logger_arguments` can change."""
    attributes = vars(logger)  # without those that DummyLogger makes up
    if _WANDB_ARGUMENTS in attributes:
        return dict(attributes[_WANDB_ARGUMENTS])
    return {name: attributes[key] for name, key in _LOGGER_ATTRIBUTES.items() if key in attributes}


def set_logger_arguments(logger: Any, arguments: Mapping[str, Any]) -> None:
    """Change arguments of a logger that has not created anything, except those that this version of it lacks."""
    attributes = vars(logger)
    if _WANDB_ARGUMENTS in attributes:
        attributes[_WANDB_ARGUMENTS].update({key: value for key, value in arguments.items() if value is not None})
        setattr(logger, _WANDB_ID, arguments.get("id"))
        return
    for name, key in _LOGGER_ATTRIBUTES.items():
        if name in arguments and key in attributes:
            setattr(logger, key, arguments[name])


def find_logged_hyperparameters(parts: Sequence[Any]) -> dict[str, Any]:
    """Return the hyperparameters of a module and its data that Lightning gives to loggers."""
    logged = [part.hparams_initial for part in parts if getattr(part, _LOGS_HYPERPARAMETERS, False)]
    # without what LightningCLI adds for itself
    return {name: value for each in logged for name, value in each.items() if not name.startswith("_")}
