"""Lightning's Tuner, which takes the Trainer's callbacks away while it searches."""

from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer

from lightning_znorm._lightning import find_classes
from lightning_znorm.hosts.substitute import Substitute
from lightning_znorm.hosts.trainer import Fit

if TYPE_CHECKING:
    import lightning.pytorch as pl

_HOOK = "on_before_optimizer_step"


class Search(Substitute):
    """Hands on the steps of a Trainer's searches, by the module's own hook, which comes after that of callbacks.

    It does nothing under another Trainer.

    Args:
        trainer: The Trainer.
        pl_module: The module that it trains.

    """

    def __init__(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        super().__init__(pl_module, _HOOK, around=self._step)
        self._trainer = trainer
        self._fits: list[Fit] = []

    def is_of(self, trainer: "pl.Trainer") -> bool:
        """Say whether the searches are those of a Trainer."""
        return self._trainer is trainer

    def join(self, fit: Fit) -> None:
        """Hand on to a fit, and no more to an earlier one of the same transform."""
        self._fits = [other for other in self._fits if other.transform is not fit.transform] + [fit]

    def leave(self, fit: Fit) -> None:
        """Hand on to a fit no more; the last one gives the module its hook back."""
        if fit in self._fits:
            self._fits.remove(fit)
        if not self._fits:
            self.release()

    def close(self) -> None:
        """End the fits, and give the module its hook back."""
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
    """Make a fit take part in the search that is about to begin, if one is, in the order of the calls.

    A learning-rate finder or a batch-size scaler is among the Trainer's callbacks then; ``Tuner`` puts it there.
    """
    left = vars(pl_module).get(_HOOK)
    if isinstance(left, Search) and not left.is_of(trainer):
        left.close()  # of a search that failed, after which Lightning calls no hook
    finders = find_classes("callbacks", "LearningRateFinder", "BatchSizeFinder")
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    if not any(isinstance(callback, finders) for callback in callbacks):
        return None
    hook = vars(pl_module).get(_HOOK)
    search = hook if isinstance(hook, Search) else Search(trainer, pl_module)
    search.join(fit)
    return search
