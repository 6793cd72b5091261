"""Lightning's Tuner, which removes the Trainer's callbacks while it searches."""

from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer

from lightning_znorm._lightning import find_classes
from lightning_znorm.hosts.substitute import Substitute
from lightning_znorm.hosts.trainer import Fit

if TYPE_CHECKING:
    import lightning.pytorch as pl

_HOOK = "on_before_optimizer_step"


class Search(Substitute):
    """Passes the steps of a Trainer's searches on to fits, from the module's own hook, which runs after the callbacks.

    It does nothing under another Trainer.
    """

    def __init__(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        super().__init__(pl_module, _HOOK, wrapper=self._step)
        self._trainer = trainer
        self._fits: list[Fit] = []

    def belongs_to(self, trainer: "pl.Trainer") -> bool:
        """Return whether this is a search of the Trainer."""
        return self._trainer is trainer

    def join(self, fit: Fit) -> None:
        """Add a fit, which replaces an earlier one of the same transform."""
        self._fits = [other for other in self._fits if other.transform is not fit.transform] + [fit]

    def leave(self, fit: Fit) -> None:
        """Remove a fit; after the last one, restore the module's hook."""
        if fit in self._fits:
            self._fits.remove(fit)
        if not self._fits:
            self.release()

    def close(self) -> None:
        """Close the fits, and restore the module's hook."""
        for fit in self._fits:
            fit.close()
        self.release()

    def _step(self, original: Any, optimizer: Optimizer) -> Any:
        if self._pl_module.trainer is self._trainer:
            callbacks: list[Any] = self._trainer.callbacks  # type: ignore[attr-defined]
            for fit in self._fits:
                if not any(callback is fit.transform for callback in callbacks):
                    fit.step(optimizer)
        return original(optimizer)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_trainer": None, "_fits": []}


def join_search(fit: Fit, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> Search | None:
    """Add a fit to the search that is about to begin, ``None`` if there is none.

    Before a search, ``Tuner`` adds a learning-rate finder or a batch-size scaler to the Trainer's callbacks.
    """
    hook = vars(pl_module).get(_HOOK)
    if isinstance(hook, Search) and not hook.belongs_to(trainer):
        hook.close()  # its search failed, after which Lightning calls no hook
    finders = find_classes("callbacks", "LearningRateFinder", "BatchSizeFinder")
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    if not any(isinstance(callback, finders) for callback in callbacks):
        return None
    hook = vars(pl_module).get(_HOOK)
    search = hook if isinstance(hook, Search) else Search(trainer, pl_module)
    search.join(fit)
    return search
