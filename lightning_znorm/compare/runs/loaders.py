"""The steps and loaders of a module and its data: which are missing, and the number of batches."""

from collections.abc import Mapping
from typing import Any

from lightning_znorm.compare.runs.recipes import Ingredients


def find_missing_hooks(ingredients: Ingredients) -> list[str]:
    """Return the names of missing steps and loaders."""
    model, datamodule = ingredients.model, ingredients.datamodule
    missing = [step for step in ("validation_step", "test_step") if not _overrides(model, step)]
    for loader in ("val_dataloader", "test_dataloader"):
        if not _overrides(model, loader) and not (datamodule is not None and _overrides(datamodule, loader)):
            missing.append(loader)
    return missing


def _overrides(owner: Any, name: str) -> bool:
    """Return whether an object has a method that is not Lightning's empty one."""
    method = getattr(type(owner), name, None)
    for base in type(owner).__mro__:
        if base.__module__.startswith(("lightning.pytorch.core", "pytorch_lightning.core")) and name in vars(base):
            return method is not vars(base)[name]
    return method is not None


def count_batches(trainer: Any) -> dict[str, float | None]:
    """Return the number of batches in the loaders of each split, without the Trainer's limits."""
    loaders = {"train": trainer.train_dataloader, "validate": trainer.val_dataloaders}
    return {split: _count(loader) for split, loader in loaders.items()}


def _count(loaders: Any) -> float | None:
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    if isinstance(loaders, (list, tuple)):
        counts = [_count(loader) for loader in loaders]
        return None if None in counts else float(sum(count or 0 for count in counts))
    try:
        return float(len(loaders))
    except (TypeError, NotImplementedError):  # as Lightning does
        return None
