"""A learning-rate schedule as long as the training, and the length of those that are given none."""

from collections.abc import Callable
from inspect import Parameter, signature
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

from lightning_znorm.errors import ArgumentValueError

__all__ = ["CosineAnnealing"]

_LENGTHS = ("T_max", "total_steps")


class CosineAnnealing(CosineAnnealingLR):
    """PyTorch's ``CosineAnnealingLR``, as long as the training unless ``total_steps`` says otherwise.

    In a configuration ``CosineAnnealingLR`` cannot be without its ``T_max``. Here the length may be left out:
    :class:`~lightning_znorm.vision.ImageClassifier` and :class:`~lightning_znorm.vision.SemanticSegmenter` set it.

    Args:
        optimizer: Optimizer whose learning rate is scheduled.
        total_steps: Number of optimizer steps until ``eta_min``.
        eta_min: Learning rate at the end.

    Raises:
        ValueError: If there is no length, in a module that does not set it.

    Example::

        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(3)], lr=0.1)
        >>> CosineAnnealing(optimizer, total_steps=100).get_last_lr()
        [0.1]

    """

    def __init__(self, optimizer: Optimizer, total_steps: int | None = None, eta_min: float = 0.0) -> None:
        if total_steps is None:
            raise ArgumentValueError("`CosineAnnealing` lacks its length: give `total_steps`.")
        super().__init__(optimizer, total_steps, eta_min)


def find_missing_length(lr_scheduler: Callable[..., Any]) -> str | None:
    """Return the name of the argument for the length of a schedule, if it has been left out.

    Example::

        >>> from functools import partial
        >>> find_missing_length(CosineAnnealingLR), find_missing_length(partial(CosineAnnealing, total_steps=9))
        ('T_max', None)

    """
    arguments = {name: parameter.default for name, parameter in signature(lr_scheduler).parameters.items()}
    arguments |= getattr(lr_scheduler, "keywords", {})  # jsonargparse hides them from the signature
    if arguments.get("epochs") is not None:  # of which OneCycleLR computes it
        return None
    return next((name for name in _LENGTHS if arguments.get(name, 0) in (None, Parameter.empty)), None)
