"""Optimizers and learning-rate schedulers by name."""

import inspect
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from lightning_znorm.errors import ArgumentValueError, unknown_choice

_FILLED_IN = {
    "CosineAnnealingLR": ("T_max",),
    "OneCycleLR": ("max_lr", "total_steps"),
    "PolynomialLR": ("total_iters",),
    "LinearLR": ("total_iters",),
}


def find_optimizer(name: str) -> type[Optimizer]:
    """Return a class of :mod:`torch.optim` by its name, case-insensitively.

    Raises:
        ValueError: If there is none of that name.

    Example::

        >>> find_optimizer("sgd").__name__
        'SGD'

    """
    found: type[Optimizer] = _find("optimizer", name, torch.optim, Optimizer)
    return found


def find_scheduler(name: str) -> type[LRScheduler]:
    """Return a class of :mod:`torch.optim.lr_scheduler` by its name, case-insensitively.

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
        ValueError: If a name is unknown, an argument is not one of the class or is missing, or ``lr`` is not positive.

    """
    if not lr > 0:
        raise ArgumentValueError(f"Expected argument `lr` to be a positive number, but got {lr!r}.")
    _check_arguments("optimizer_args", find_optimizer(optimizer), optimizer_args, reserved=("params", "lr"))
    if scheduler is not None:
        cls = find_scheduler(scheduler)
        filled_in = _FILLED_IN.get(cls.__name__, ())
        _check_arguments("scheduler_args", cls, scheduler_args, reserved=("optimizer",), filled_in=filled_in)
    elif scheduler_args:
        raise ArgumentValueError(f"Argument `scheduler_args` is {scheduler_args!r}, but `scheduler` is None.")


def configure(
    parameters: Iterable[Tensor],
    optimizer: str,
    lr: float,
    optimizer_args: Mapping[str, Any] | None = None,
    scheduler: str | None = None,
    scheduler_args: Mapping[str, Any] | None = None,
    total_steps: float = math.inf,
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
        total_steps: Number of optimizer steps in the whole training, infinite where it is not known.

    Raises:
        ValueError: If the scheduler needs the length of a training that has none.

    """
    made = find_optimizer(optimizer)(parameters, lr=lr, **(optimizer_args or {}))  # type: ignore[call-arg]
    if scheduler is None:
        return {"optimizer": made}
    cls = find_scheduler(scheduler)
    arguments = dict(scheduler_args or {})
    for name in _FILLED_IN.get(cls.__name__, ()):
        if name not in arguments:
            arguments[name] = lr if name == "max_lr" else _finite(total_steps, name, cls)
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


def _finite(total_steps: float, name: str, cls: type) -> int:
    if math.isinf(total_steps):
        raise ArgumentValueError(
            f"The scheduler `{cls.__name__}` needs the length of the training, which has no end. Set `max_epochs` or"
            f" `max_steps` of the Trainer, or give `scheduler_args={{{name!r}: …}}`."
        )
    return int(total_steps)


def _check_arguments(
    argument: str,
    cls: type,
    given: Mapping[str, Any] | None,
    reserved: tuple[str, ...],
    filled_in: tuple[str, ...] = (),
) -> None:
    parameters = inspect.signature(cls).parameters
    known = [name for name in parameters if name not in reserved]
    for name in given or {}:
        if name in reserved:
            raise ArgumentValueError(
                f"Argument `{argument}` must not contain {name!r}: the module sets it. Take it out."
            )
        if name not in known:
            raise unknown_choice(f"{argument}` of `{cls.__name__}", name, known)
    missing = [name for name in known if parameters[name].default is inspect.Parameter.empty]
    missing = [name for name in missing if name not in (*filled_in, *(given or ()))]
    if missing:
        raise ArgumentValueError(f"Argument `{argument}` lacks {missing[0]!r}, which `{cls.__name__}` requires.")
