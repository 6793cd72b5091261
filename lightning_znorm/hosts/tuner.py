"""A gradient transform bound to a LightningModule, for the Tuner, which takes the Trainer's callbacks away."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer

from lightning_znorm._lightning import MisconfigurationException, import_all
from lightning_znorm.engine.checks import enabled_twins

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from lightning_znorm.transform import GradientTransform

_HOOK = "on_before_optimizer_step"


class Binding:
    """Stands in for a module's own ``on_before_optimizer_step``, applies a transform and calls it.

    It does nothing while the Trainer has the transform among its callbacks, so that none is applied twice.

    Args:
        transform: The transform to apply.
        pl_module: The module to bind it to, until :meth:`release`.
        trainer: The only Trainer under which it is applied, ``None`` for any.

    Raises:
        TypeError: If ``pl_module`` has no such hook.
        MisconfigurationException: If the same transform is bound to the module already.

    """

    def __init__(
        self, transform: "GradientTransform", pl_module: "pl.LightningModule", trainer: "pl.Trainer | None" = None
    ) -> None:
        if not callable(getattr(pl_module, _HOOK, None)) or not hasattr(pl_module, "configure_optimizers"):
            raise TypeError(f"Expected argument `pl_module` to be a LightningModule, but got {pl_module!r}.")
        self._trainer = trainer
        self._under_any_trainer = trainer is None
        for leftover in bindings(pl_module):  # of searches that failed, after which Lightning calls no hook
            if not leftover._under_any_trainer and leftover._trainer is not trainer:
                leftover.release()
        if is_bound(transform, pl_module):
            raise MisconfigurationException(
                f"A `{transform._kind().__name__}` is bound to this `{type(pl_module).__name__}` already; a second one"
                " would transform each gradient twice. Leave the outer `bound_to` first."
            )
        self.transform = transform
        self._pl_module = pl_module
        self._original = getattr(pl_module, _HOOK)
        self._was_set_on_instance = _HOOK in vars(pl_module)
        setattr(pl_module, _HOOK, self)

    def __call__(self, optimizer: Optimizer) -> Any:
        """Apply the transform, then call the module's own hook."""
        trainer = self._pl_module.trainer
        if self.transform.enabled and (self._under_any_trainer or self._trainer is trainer):
            twins = enabled_twins(self.transform, trainer)
            if not twins:
                self.transform._apply_bound(trainer, self._pl_module, optimizer, counts_anew=self._under_any_trainer)
            elif self.transform not in twins:
                self.transform._close_fit()
        return self._original(optimizer)

    def release(self) -> None:
        """Give the module its own hook back, or take this binding out from between others."""
        chain = [*bindings(self._pl_module)]
        if self not in chain:
            return
        position = chain.index(self)
        if position > 0:
            outer = chain[position - 1]
            outer._original, outer._was_set_on_instance = self._original, self._was_set_on_instance
        elif self._was_set_on_instance:
            setattr(self._pl_module, _HOOK, self._original)
        else:
            delattr(self._pl_module, _HOOK)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the Trainer behind in copies, as a LightningModule does; bound to one Trainer alone, a copy rests."""
        return {**vars(self), "_trainer": None}


def bindings(pl_module: "pl.LightningModule") -> Sequence[Binding]:
    """Return the bindings of a module, the outermost first."""
    chain = []
    hook = vars(pl_module).get(_HOOK)
    while isinstance(hook, Binding):
        chain.append(hook)
        hook = hook._original
    return chain


def is_bound(transform: "GradientTransform", pl_module: "pl.LightningModule") -> bool:
    """Say whether an enabled transform of the same kind is bound to the module under any Trainer."""
    return any(
        binding._under_any_trainer and binding.transform.enabled and isinstance(binding.transform, transform._kind())
        for binding in bindings(pl_module)
    )


def has_tuner_callback(trainer: "pl.Trainer") -> bool:
    """Say whether the learning-rate finder or the batch-size scaler is about to run.

    ``Tuner`` puts them among the callbacks for the ``fit`` in which they search.
    """
    finders = tuple(
        getattr(module, name)
        for module in import_all("callbacks")
        for name in ("LearningRateFinder", "BatchSizeFinder")
    )
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return any(isinstance(callback, finders) for callback in callbacks)
