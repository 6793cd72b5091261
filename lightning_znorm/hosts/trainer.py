"""One ``fit`` of a Trainer: makes its optimizers' Steps, and reports what became of them."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch.optim import Optimizer

from lightning_znorm._lightning import batches_that_stepped, is_logging_due
from lightning_znorm._torch import make_hookable
from lightning_znorm.engine.checks import refuse_closure_reevaluation, refuse_optimizer
from lightning_znorm.engine.claims import claim, release
from lightning_znorm.engine.groups import Ranks
from lightning_znorm.engine.nonfinite import SkipCounts
from lightning_znorm.engine.numbering import OptimizerNumbers
from lightning_znorm.engine.pipeline import Engine, Outcome, Step
from lightning_znorm.engine.scaling import scale_in_gradients
from lightning_znorm.engine.selection import Named
from lightning_znorm.engine.stepping import StepHooks
from lightning_znorm.engine.transform import Transform
from lightning_znorm.hosts.clipping import ClippingWatch, not_with_clipping, warn_about_clip_val
from lightning_znorm.hosts.reporting import (
    describe_stats,
    log_metrics,
    prefix_of,
    warn_about_bypass,
    warn_about_idleness,
    warn_about_skip,
)
from lightning_znorm.hosts.support import refuse_unsupported, scaler_of

if TYPE_CHECKING:
    import lightning.pytorch as pl


class Fit:
    """Makes Steps of the optimizers of one ``fit``, for one transform, until :meth:`close`.

    Args:
        transform: The transform.
        trainer: The Trainer.
        pl_module: The module that it trains.
        counts: Where skipped steps are counted.

    Attributes:
        transform: The transform.
        step: Transforms the gradients of the optimizer that it is called with, which is about to step.

    Raises:
        MisconfigurationError: If the strategy or the precision is not supported.

    """

    def __init__(
        self, transform: Transform, trainer: "pl.Trainer", pl_module: "pl.LightningModule", counts: SkipCounts
    ) -> None:
        self.transform = transform
        self._owner = type(transform).__name__
        self._trainer, self._pl_module, self._counts = trainer, pl_module, counts
        refuse_unsupported(self._owner, trainer.strategy, trainer.strategy.precision_plugin)
        # `torch.compile(optimizer.step)` would trace into it through the closure
        self.step: Callable[[Optimizer], None] = torch.compiler.disable(self._step)
        self._engine: Engine | None = None
        self._optimizers = OptimizerNumbers()
        self._hooks = StepHooks(begin=self._begin_step, end=self._end_step)
        # numbers of optimizers whose gradients have come by since their last step; how often in the step being made
        self._came_by: set[int] = set()
        self._evaluations: dict[int, int] = {}
        self._clipping: ClippingWatch | None = None
        self._was_called = self._has_worked = self._has_warned = False
        self._batches_before = 0
        warn_about_clip_val(transform, trainer)

    def start(self) -> None:
        """Match the names, and check optimizers and parameters, now that these exist.

        Raises:
            MisconfigurationError: If an optimizer or a parameter is not supported, or a pattern matches nothing.

        """
        self.close()
        trainer, pl_module = self._trainer, self._pl_module
        self._engine = Engine(self.transform, self._name_parameters, self._counts)
        self._take_up(trainer.optimizers)
        is_scaled = scaler_of(trainer) is not None
        self._engine.check(pl_module.modules(), pl_module.parameters(), under_scaler=is_scaled)
        if not trainer.gradient_clip_val and not_with_clipping(self.transform):
            self._clipping = ClippingWatch(self.transform, pl_module)

    def begin(self) -> None:
        """Remember where the training begins, after searches, and after a checkpoint has been restored."""
        self._take_up(self._trainer.optimizers)
        self._was_called = self._has_worked = False
        self._batches_before = batches_that_stepped(self._trainer)

    def _step(self, optimizer: Optimizer) -> None:
        if self._engine is None:  # in a search, which may begin before `on_fit_start`
            self.start()
        assert self._engine is not None
        self._take_up([optimizer])
        self._was_called = True
        number = self._optimizers[optimizer]
        self._came_by.add(number)
        trainer = self._trainer
        scaler = scaler_of(trainer)
        # under a scaler Lightning evaluates the closure once, before the step
        if scaler is None and optimizer in self._hooks:
            evaluations = self._evaluations[number] = self._evaluations.get(number, 0) + 1
            if evaluations > 1:
                refuse_closure_reevaluation(self._owner, optimizer)
        step = Step(
            optimizer,
            row=number,
            number=trainer.global_step,
            epoch=trainer.current_epoch,
            grad_scale=scale_in_gradients(scaler, optimizer),
            scaler_skips=scaler is not None,
            ranks=Ranks(trainer.world_size > 1, trainer.strategy.root_device),
        )
        self._report(step, self._engine(step))

    def end(self) -> None:
        """Warn if batches were trained on and no gradient was transformed."""
        if not self._has_worked and batches_that_stepped(self._trainer) > self._batches_before:
            warn_about_idleness(self._owner, self._was_called)

    def close(self) -> None:
        """Let go of the module and its optimizers."""
        self._hooks.remove()
        for optimizer in self._optimizers:
            release(optimizer, self.transform)
        self._optimizers = OptimizerNumbers()
        self._engine = None
        if self._clipping is not None:
            self._clipping.close()
        self._clipping = None

    def _take_up(self, optimizers: Iterable[Optimizer]) -> None:
        """Check optimizers that are new, as those that take the place of others in the course of a training."""
        for optimizer in optimizers:
            if optimizer in self._optimizers:
                continue
            refuse_optimizer(self._owner, optimizer)
            if isinstance(optimizer, Optimizer):  # Lightning takes whatever has a `step`
                claim(optimizer, self.transform, "a callback of the Trainer that steps")
                if make_hookable(optimizer):
                    self._hooks.add([optimizer])
            self._optimizers.add(optimizer)

    def _report(self, step: Step, outcome: Outcome) -> None:
        self._has_worked |= outcome.nonfinite is not None or outcome.stats is not None
        prefix, detail = self.transform.log_prefix, self.transform.log_stats
        if outcome.nonfinite is not None:
            if self._counts.skipped_steps == 1:
                warn_about_skip(self._owner, outcome.nonfinite, step.number)
            log_metrics(self._trainer, {f"{prefix}/skipped_steps": float(self._counts.skipped_steps)})
        if outcome.stats is None:
            return
        if self._clipping is not None:
            self._clipping.see(outcome.parameters)
        trainer = self._trainer
        if detail and trainer.loggers and trainer.is_global_zero and len(outcome.stats) and is_logging_due(trainer):
            assert self._engine is not None
            if detail == "summary":
                prefix = prefix_of(prefix, step.row, len(trainer.optimizers))
            names = [self._engine.selection.name_of(parameter) for parameter in outcome.parameters]
            numel = [parameter.numel() for parameter in outcome.parameters]
            log_metrics(trainer, describe_stats(prefix, detail, outcome.stats, names, numel))

    def _begin_step(self, optimizer: Optimizer) -> None:
        self._evaluations.pop(self._optimizers[optimizer], None)

    def _end_step(self, optimizer: Optimizer) -> None:
        number = self._optimizers[optimizer]
        came_by = number in self._came_by
        self._came_by.discard(number)
        if not came_by and self.transform.enabled and not self._has_warned:
            self._has_warned = True
            warn_about_bypass(self._owner, optimizer)

    def _name_parameters(self) -> Named:
        return self._pl_module.named_parameters(remove_duplicate=False)
