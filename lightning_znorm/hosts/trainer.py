"""One ``fit`` of a Trainer: passes the steps of its optimizers to the engine, and reports the outcomes."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.optim import Optimizer

from lightning_znorm._lightning import batches_that_stepped, is_logging_due
from lightning_znorm._torch import make_hookable
from lightning_znorm.engine.checks import refuse_closure_reevaluation, refuse_optimizer
from lightning_znorm.engine.claims import claim, release
from lightning_znorm.engine.groups import Ranks
from lightning_znorm.engine.nonfinite import SkipCounts
from lightning_znorm.engine.numbering import OptimizerIndices
from lightning_znorm.engine.pipeline import Engine, Outcome, Step
from lightning_znorm.engine.scaling import find_pending_scale
from lightning_znorm.engine.selection import NamedParameters
from lightning_znorm.engine.sharding import Layouts
from lightning_znorm.engine.stepping import StepHooks
from lightning_znorm.engine.transform import Transform
from lightning_znorm.hosts.clipping import ClippingWatch, conflicts_with_clipping, warn_about_clip_val
from lightning_znorm.hosts.reporting import (
    compute_metrics,
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
    """Applies one transform to the optimizers of one ``fit``, until :meth:`close`.

    Attributes:
        transform: The transform.
        step: Function that transforms the gradients of an optimizer that is about to step.

    """

    def __init__(
        self, transform: Transform, trainer: "pl.Trainer", pl_module: "pl.LightningModule", counts: SkipCounts
    ) -> None:
        self.transform = transform
        self._owner = type(transform).__name__
        self._trainer, self._pl_module, self._counts = trainer, pl_module, counts
        refuse_unsupported(self._owner, trainer.strategy, trainer.strategy.precision_plugin)
        # `torch.compile(optimizer.step)` would trace into this through the closure
        self.step: Callable[[Optimizer], None] = torch.compiler.disable(self._step)
        self._engine: Engine | None = None
        self._optimizers = OptimizerIndices()
        self._hooks = StepHooks(on_begin=self._begin_step, on_end=self._end_step)
        # indices of the optimizers whose hook has run and whose step has not ended; evaluations of their closures
        self._pending_steps: set[int] = set()
        self._closure_evaluations: dict[int, int] = {}
        self._clipping: ClippingWatch | None = None
        self._was_called = self._has_worked = self._has_warned = False
        self._first_batch = 0
        warn_about_clip_val(transform, trainer)

    def start(self) -> None:
        """Match ``exclude``, and check optimizers and parameters, now that they exist."""
        self.close()
        trainer, pl_module = self._trainer, self._pl_module
        layouts = Layouts(self._owner, self._list_modules)
        self._engine = Engine(self.transform, self._name_parameters, self._counts, layouts)
        self._register(trainer.optimizers)
        is_scaled = scaler_of(trainer) is not None
        self._engine.check(pl_module.modules(), pl_module.parameters(), under_scaler=is_scaled)
        if not trainer.gradient_clip_val and conflicts_with_clipping(self.transform):
            self._clipping = ClippingWatch(self.transform, pl_module)

    def begin(self) -> None:
        """Reset the record of the training, after searches and after a checkpoint has been restored."""
        self._register(self._trainer.optimizers)
        self._was_called = self._has_worked = False
        self._first_batch = batches_that_stepped(self._trainer)

    def _step(self, optimizer: Optimizer) -> None:
        if self._engine is None:  # in a search, which may begin before `on_fit_start`
            self.start()
        assert self._engine is not None
        self._register([optimizer])
        self._was_called = True
        index = self._optimizers[optimizer]
        self._pending_steps.add(index)
        trainer = self._trainer
        scaler = scaler_of(trainer)
        # under a scaler Lightning evaluates the closure once, before the step
        if scaler is None and optimizer in self._hooks:
            evaluations = self._closure_evaluations[index] = self._closure_evaluations.get(index, 0) + 1
            if evaluations > 1:
                refuse_closure_reevaluation(self._owner, optimizer)
        step = Step(
            optimizer,
            optimizer_index=index,
            number=trainer.global_step,
            epoch=trainer.current_epoch,
            grad_scale=find_pending_scale(scaler, optimizer),
            scaler_skips=scaler is not None,
            ranks=Ranks(trainer.world_size > 1, trainer.strategy.root_device, are_in_step=True),
        )
        self._report(step, self._engine(step))

    def end(self) -> None:
        """Warn if there were batches and no gradient was transformed."""
        if not self._has_worked and batches_that_stepped(self._trainer) > self._first_batch:
            warn_about_idleness(self._owner, self._was_called)

    def close(self) -> None:
        """Release the module and its optimizers."""
        self._hooks.remove()
        for optimizer in self._optimizers:
            release(optimizer, self.transform)
        self._optimizers = OptimizerIndices()
        self._engine = None
        if self._clipping is not None:
            self._clipping.close()
        self._clipping = None

    def _register(self, optimizers: Iterable[Optimizer]) -> None:
        """Check and index optimizers that are new, also those that replace others during a training."""
        for optimizer in optimizers:
            if optimizer in self._optimizers:
                continue
            refuse_optimizer(self._owner, optimizer)
            if isinstance(optimizer, Optimizer):  # Lightning accepts any object with a `step`
                claim(optimizer, self.transform, "a callback of the Trainer that steps")
                if make_hookable(optimizer):
                    self._hooks.add([optimizer])
            self._optimizers.add(optimizer)

    def _report(self, step: Step, outcome: Outcome) -> None:
        self._has_worked |= outcome.nonfinite_name is not None or outcome.stats is not None
        prefix, detail = self.transform.log_prefix, self.transform.log_stats
        if outcome.nonfinite_name is not None:
            if self._counts.skipped_steps == 1:
                warn_about_skip(self._owner, outcome.nonfinite_name, step.number)
            log_metrics(self._trainer, {f"{prefix}/skipped_steps": float(self._counts.skipped_steps)})
        if outcome.stats is None:
            return
        if self._clipping is not None:
            self._clipping.expect_clipping(outcome.parameters)
        trainer = self._trainer
        if detail and trainer.loggers and trainer.is_global_zero and len(outcome.stats) and is_logging_due(trainer):
            assert self._engine is not None
            if detail == "summary":
                prefix = prefix_of(prefix, step.optimizer_index, len(trainer.optimizers))
            names = [self._engine.selection.name_of(parameter) for parameter in outcome.parameters]
            pairs = zip(outcome.parameters, names, strict=True)
            numel = [self._engine.selection.layouts.find_numel(parameter, name) for parameter, name in pairs]
            log_metrics(trainer, compute_metrics(prefix, detail, outcome.stats, names, numel))

    def _begin_step(self, optimizer: Optimizer) -> None:
        self._closure_evaluations.pop(self._optimizers[optimizer], None)

    def _end_step(self, optimizer: Optimizer) -> None:
        index = self._optimizers[optimizer]
        was_pending = index in self._pending_steps
        self._pending_steps.discard(index)
        if not was_pending and self.transform.enabled and not self._has_warned:
            self._has_warned = True
            warn_about_bypass(self._owner, optimizer)

    def _list_modules(self) -> Iterable[nn.Module]:
        # those that a strategy has wrapped around the module, too
        model: nn.Module = self._trainer.strategy.model or self._pl_module
        return model.modules()

    def _name_parameters(self) -> NamedParameters:
        return self._pl_module.named_parameters(remove_duplicate=False)
