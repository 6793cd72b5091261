"""One `fit` of a Trainer, as a gradient transform sees it."""

from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_znorm.engine.checks import (
    refuse_attached,
    refuse_capture,
    refuse_closure_reevaluation,
    refuse_optimizers,
    refuse_parameters,
)
from lightning_znorm.engine.pipeline import apply_transform, is_selected
from lightning_znorm.engine.scaling import scale_in_gradients, scaler_of
from lightning_znorm.engine.selection import ParameterNames
from lightning_znorm.engine.stepping import is_nested_step
from lightning_znorm.hosts.reporting import log_gradient_stats, log_skipped_steps
from lightning_znorm.hosts.warnings import warn_about_bypass, warn_about_skip

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from lightning_znorm.transform import GradientTransform


class Fit:
    """Names, optimizers and steps of one ``fit``, from its checked start to :meth:`close`.

    Args:
        transform: The transform at work.
        trainer: A Trainer whose optimizers exist.
        pl_module: The module that it trains.

    Attributes:
        was_called: Whether an optimizer step has come by.
        has_transformed: Whether a gradient was transformed, or a step skipped on purpose.

    Raises:
        MisconfigurationException: If an optimizer or a parameter is not supported, or a pattern matches nothing.

    """

    def __init__(self, transform: "GradientTransform", trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        self.transform = transform
        self.trainer = trainer
        self._pl_module = pl_module
        self.optimizers: list[Optimizer] = list(trainer.optimizers)
        self.names = self._name_parameters()
        refuse_optimizers(transform, self.optimizers)
        refuse_attached(transform, self.optimizers)
        refuse_parameters(
            transform,
            pl_module.modules(),
            pl_module.parameters(),
            self.names,
            self._is_selected,
            under_scaler=scaler_of(trainer) is not None,
        )
        self.was_called = False
        self.has_transformed = False
        self.batches_before = trainer.fit_loop.epoch_loop._batches_that_stepped
        # optimizers whose gradients have come by since their last step; how often they have in the step being made
        self._came_by: set[int] = set()
        self._evaluations: dict[int, int] = {}
        self._has_warned = False
        watched = [optimizer for optimizer in self.optimizers if _has_hooks(optimizer)]
        self._watched = {*map(id, watched)}
        self._handles = [optimizer.register_step_pre_hook(self._before_step) for optimizer in watched]
        self._handles += [optimizer.register_step_post_hook(self._after_step) for optimizer in watched]

    def close(self) -> None:
        """Let go of the optimizers."""
        for handle in self._handles:
            handle.remove()

    def is_of(self, trainer: "pl.Trainer") -> bool:
        """Say whether this is the ``fit`` in which the Trainer is now."""
        return self.trainer is trainer and [*map(id, self.optimizers)] == [*map(id, trainer.optimizers)]

    def apply(self, optimizer: Optimizer) -> None:
        """Transform the gradients of the optimizer that is about to step."""
        transform, trainer = self.transform, self.trainer
        self.was_called = True
        self._came_by.add(id(optimizer))
        scaler = scaler_of(trainer)
        # under a scaler Lightning evaluates the closure once, before the step
        if scaler is None and id(optimizer) in self._watched:
            evaluations = self._evaluations[id(optimizer)] = self._evaluations.get(id(optimizer), 0) + 1
            if evaluations > 1:
                refuse_closure_reevaluation(transform, optimizer)
        step = trainer.global_step
        if not transform.should_transform(step, trainer.current_epoch):
            return
        refuse_capture(transform)
        if not self.names.cover(optimizer):
            self.names = self._name_parameters()
            self.names.adopt(optimizer)
        number = next((i for i, known in enumerate(self.optimizers) if known is optimizer), 0)
        parameter = transform._nonfinite_policy.skips(
            optimizer,
            number=number,
            names=self.names,
            scaler_skips=scaler is not None,
            distributed=trainer.world_size > 1,
            device=trainer.strategy.root_device,
        )
        if parameter is not None:
            self.has_transformed = True
            self._report_skip(parameter, step)
            return
        applied = apply_transform(transform, optimizer, self.names, scale_in_gradients(scaler, optimizer))
        if applied is None:
            return
        self.has_transformed = True
        if transform.log_stats:
            parameters, stats = applied
            names = [self.names[parameter] for parameter in parameters]
            prefix = transform.log_prefix
            if transform.log_stats == "summary" and len(self.optimizers) > 1:
                prefix += f"/optimizer_{number}"
            log_gradient_stats(trainer, prefix, transform.log_stats, stats, names)

    def _report_skip(self, parameter: str, step: int) -> None:
        skipped = self.transform._nonfinite_policy.skipped_steps
        if skipped == 1:
            warn_about_skip(self.transform, parameter, step)
        log_skipped_steps(self.trainer, self.transform.log_prefix, skipped)

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not is_nested_step(optimizer):
            self._evaluations.pop(id(optimizer), None)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if is_nested_step(optimizer):
            return
        came_by = id(optimizer) in self._came_by
        self._came_by.discard(id(optimizer))
        if not came_by and self.transform.enabled and not self._has_warned:
            self._has_warned = True
            warn_about_bypass(self.transform, optimizer)

    def _name_parameters(self) -> ParameterNames:
        named = self._pl_module.named_parameters(remove_duplicate=False)
        return ParameterNames(named, self.transform.exclude, owner=type(self.transform).__name__)

    def _is_selected(self, parameter: Tensor) -> bool:
        return is_selected(self.transform, self.names, parameter)


def _has_hooks(optimizer: object) -> bool:
    """Say whether it is one of PyTorch's optimizers; Lightning takes whatever has a ``step``."""
    return isinstance(optimizer, Optimizer)
