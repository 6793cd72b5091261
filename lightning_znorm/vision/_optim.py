"""Optimizers and learning-rate schedulers by name."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from lightning_znorm.vision._choices import unknown_choice


def find_optimizer(name: str) -> type[Optimizer]:
    """Return a class of :mod:`torch.optim` by its name, in any case.

    Raises:
        ValueError: If there is none of that name.

    Example::

        >>> find_optimizer("sgd").__name__
        'SGD'

    """
    found: type[Optimizer] = _find("optimizer", name, torch.optim, Optimizer)
    return found


def find_scheduler(name: str) -> type[LRScheduler]:
    """Return a class of :mod:`torch.optim.lr_scheduler` by its name, in any case.

    Raises:
        ValueError: If there is none of that name.

    Example::

        >>> find_scheduler("cosineannealinglr").__name__
        'CosineAnnealingLR'

    """
    found: type[LRScheduler] = _find("scheduler", name, lr_scheduler, LRScheduler)
    return found


def check_optimization(
    optimizer: str,
    lr: float,
    optimizer_args: Mapping[str, Any] | None,
    scheduler: str | None,
    scheduler_args: Mapping[str, Any] | None,
) -> None:
    """Check names and arguments before there is a model to optimize.

    Raises:
        ValueError: If a name is unknown, an argument is not one of the class, or ``lr`` is not positive.

    """
    if not lr > 0:
        raise ValueError(f"Expected argument `lr` to be a positive number, but got {lr!r}.")
    _check_arguments("optimizer_args", find_optimizer(optimizer), optimizer_args, reserved=("params", "lr"))
    if scheduler is not None:
        _check_arguments("scheduler_args", find_scheduler(scheduler), scheduler_args, reserved=("optimizer",))
    elif scheduler_args:
        raise ValueError(f"Argument `scheduler_args` is {scheduler_args!r}, but `scheduler` is None.")


def configure(
    parameters: Iterable[Tensor],
    optimizer: str,
    lr: float,
    optimizer_args: Mapping[str, Any] | None = None,
    scheduler: str | None = None,
    scheduler_args: Mapping[str, Any] | None = None,
    total_steps: int = 1,
) -> dict[str, Any]:
    """Build what ``configure_optimizers`` returns.

    A scheduler steps after every optimizer step; ``ReduceLROnPlateau`` after every epoch, on ``val_loss``. The length
    of ``CosineAnnealingLR``, ``OneCycleLR``, ``PolynomialLR`` and ``LinearLR`` defaults to the whole training, and
    ``OneCycleLR``'s peak to ``lr``.

    Args:
        parameters: What to optimize.
        optimizer: Name of a class in :mod:`torch.optim`.
        lr: Learning rate.
        optimizer_args: Further arguments of the optimizer.
        scheduler: Name of a class in :mod:`torch.optim.lr_scheduler`, ``None`` for a constant learning rate.
        scheduler_args: Arguments of the scheduler.
        total_steps: Number of optimizer steps in the whole training.

    """
    made = find_optimizer(optimizer)(parameters, lr=lr, **(optimizer_args or {}))  # type: ignore[call-arg]
    if scheduler is None:
        return {"optimizer": made}
    cls = find_scheduler(scheduler)
    defaults: dict[str, dict[str, Any]] = {
        "CosineAnnealingLR": {"T_max": total_steps},
        "OneCycleLR": {"max_lr": lr, "total_steps": total_steps},
        "PolynomialLR": {"total_iters": total_steps},
        "LinearLR": {"total_iters": total_steps},
    }
    arguments = {**defaults.get(cls.__name__, {}), **(scheduler_args or {})}
    config: dict[str, Any] = {"scheduler": cls(made, **arguments), "interval": "step"}
    if issubclass(cls, lr_scheduler.ReduceLROnPlateau):
        config.update(interval="epoch", monitor="val_loss")
    return {"optimizer": made, "lr_scheduler": config}


def _find(argument: str, name: str, module: Any, base: type) -> Any:
    classes = {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, base) and value is not base and not key.startswith("_")
    }
    by_lower_case = {key.lower(): value for key, value in classes.items()}
    if str(name).lower() not in by_lower_case:
        raise unknown_choice(argument, name, classes)
    return by_lower_case[name.lower()]


def _check_arguments(argument: str, cls: type, given: Mapping[str, Any] | None, reserved: tuple[str, ...]) -> None:
    known = [name for name in inspect.signature(cls).parameters if name not in reserved]
    for name in given or {}:
        if name in reserved:
            raise ValueError(f"Argument `{argument}` must not contain {name!r}: it is given by the module's own.")
        if name not in known:
            raise unknown_choice(f"{argument}` of `{cls.__name__}", name, known)
