"""One optimizer step: check the schedule, select parameters, look for inf and NaN, transform the gradients."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_znorm.backends.choice import agree, is_capturing, may_use_triton
from lightning_znorm.backends.gradients import are_plain, require_transformable
from lightning_znorm.engine.checks import refuse_capture, refuse_parameters, refuse_shards
from lightning_znorm.engine.groups import Ranks
from lightning_znorm.engine.nonfinite import SkipCounts, find_nonfinite_parameter, refuse_nonfinite, skip_step
from lightning_znorm.engine.selection import NamedParameters, OptimizerParameters, Selection
from lightning_znorm.engine.sharding import Layouts, add_up_with_verdict
from lightning_znorm.engine.transform import Transform
from lightning_znorm.functional import GradientStats, add_up, collect_gradients, require_transformable_parts


@dataclass(frozen=True)
class Step:
    """A step that an optimizer is about to make; created by a host.

    Attributes:
        optimizer: The optimizer.
        optimizer_index: Its index among the optimizers of the training.
        number: Number of steps made before, for the schedule.
        epoch: Number of epochs completed before, for the schedule.
        grad_scale: The GradScaler's scale by which the gradients are still multiplied, ``None`` for none.
        scaler_skips: Whether a GradScaler will skip the step if a gradient is not finite.
        ranks: The ranks that decide about the step together.

    """

    optimizer: Optimizer
    optimizer_index: int = 0
    number: int = 0
    epoch: int = 0
    grad_scale: Tensor | None = None
    scaler_skips: bool = False
    ranks: Ranks = field(default_factory=Ranks)


@dataclass(frozen=True)
class Outcome:
    """The result of a step.

    Attributes:
        was_due: Whether the schedule has the transform run in this step.
        parameters: The parameters whose gradients were transformed.
        stats: Statistics of these gradients before the transform, ``None`` if there were none.
        nonfinite_name: Name of the parameter with an inf or NaN because of which the step is skipped, ``None`` if it
            is made.

    """

    was_due: bool = True
    parameters: list[Tensor] = field(default_factory=list)
    stats: GradientStats | None = None
    nonfinite_name: str | None = None

    @property
    def is_idle(self) -> bool:
        """Whether the transform was due, but found no gradient to transform."""
        return self.was_due and self.stats is None and self.nonfinite_name is None


class Engine:
    """Applies one transform in one training.

    Attributes:
        transform: The transform.
        counts: Counters of skipped steps.
        selection: Selects parameters, and names them, see :class:`.Selection` for ``name_parameters`` and ``layouts``.

    """

    def __init__(
        self,
        transform: Transform,
        name_parameters: Callable[[], NamedParameters],
        counts: SkipCounts,
        layouts: Layouts | None = None,
    ) -> None:
        self.transform = transform
        self.counts = counts
        self._owner = type(transform).__name__
        self.selection = Selection(name_parameters, transform.exclude, transform.min_ndim, self._owner, layouts)
        self._has_agreed = False

    def check(self, modules: Iterable[nn.Module], parameters: Iterable[Tensor], under_scaler: bool = False) -> None:
        """Refuse parameters whose gradients cannot be transformed, see :func:`.refuse_parameters`."""
        selected = list(filter(self.selection.is_selected, parameters))
        if any(self.selection.find_layout(parameter) is not None for parameter in selected):
            refuse_shards(self.transform)
        refuse_parameters(self._owner, modules, selected, self.selection.name_of, under_scaler)

    def __call__(self, step: Step) -> Outcome:
        """Transform the gradients of the optimizer's selected parameters, or skip the step.

        All ranks of ``step.ranks`` must call this in the same step.

        Raises:
            MisconfigurationError: If a CUDA graph captures a step that waits for the device, or ranks hold parts of
                gradients and it is unknown which.
            CollectiveError: If another rank is gone or late when sums are added up.
            NonfiniteGradientError: Naming the parameter, with ``nonfinite="raise"`` or after ``max_skips`` skips.
            ArgumentTypeError: If a gradient cannot be transformed.

        """
        transform = self.transform
        if not transform.should_transform(step.number, step.epoch):
            return Outcome(was_due=False)
        refuse_capture(self._owner, nonfinite=transform.nonfinite, log_stats=transform.log_stats)
        parameters = self.selection.select(step.optimizer)
        self._agree(step, parameters)
        if parameters.layouts:
            with torch.no_grad():
                return self._transform_shards(step, parameters)
        if self._looks_for_nonfinite(step):
            nonfinite = find_nonfinite_parameter(parameters.unique, step.ranks)
            if nonfinite is not None:
                return self._skip(step, parameters, nonfinite)
            self.counts.reset(step.optimizer_index)
        transformed, gradients = [], []
        for parameter in parameters.selected:
            gradient = parameter.grad
            if gradient is not None and gradient.numel():
                transformed.append(parameter)
                gradients.append(gradient)
        if not transformed:
            return Outcome()
        is_scaled = step.grad_scale is not None
        if not are_plain(gradients, is_scaled):
            for parameter, gradient in zip(transformed, gradients, strict=True):
                require_transformable(gradient, self.selection.name_of(parameter), is_scaled)
        with torch.no_grad():
            return Outcome(True, transformed, transform.transform(transformed, step.grad_scale))

    def _transform_shards(self, step: Step, parameters: OptimizerParameters) -> Outcome:
        refuse_shards(self.transform)
        gradients = collect_gradients(parameters.selected, parameters.layouts.get)
        require_transformable_parts(gradients, self.selection.name_of, scaled=step.grad_scale is not None)
        sums = self.transform.measure_shards(gradients)
        if not self._looks_for_nonfinite(step):
            add_up(sums)
        else:
            nonfinite = add_up_with_verdict(sums, parameters.unique, step.ranks)
            if nonfinite is not None:
                return self._skip(step, parameters, nonfinite)
            self.counts.reset(step.optimizer_index)
        if not gradients.parameters:
            return Outcome()
        return Outcome(True, gradients.parameters, self.transform.transform_shards(gradients, sums, step.grad_scale))

    def _agree(self, step: Step, parameters: OptimizerParameters) -> None:
        """Let all ranks take the same backend, once and before a gradient is edited.

        Ranks that may step on their own decide on their own: waiting for the others could have no end.
        """
        ranks = step.ranks
        are_in_step = ranks.are_in_step or self.transform.nonfinite != "propagate" or bool(parameters.layouts)
        if self._has_agreed or not (ranks.is_distributed and are_in_step) or is_capturing():
            return
        self._has_agreed = True
        devices = {parameter.device for parameter in parameters.selected}
        if any(map(may_use_triton, devices)):
            agree(parameters.selected, lambda works: ranks.reduce_min(works, devices))

    def _looks_for_nonfinite(self, step: Step) -> bool:
        mode = self.transform.nonfinite
        return mode == "raise" or (mode == "skip" and not step.scaler_skips)

    def _skip(self, step: Step, parameters: OptimizerParameters, nonfinite: Tensor) -> Outcome:
        """Skip a step because of a parameter with an inf or NaN, or raise."""
        name = self.selection.name_of(nonfinite)
        if self.transform.nonfinite == "raise":
            refuse_nonfinite(name, self._owner, step.scaler_skips)
        skip_step(parameters.unique, name, step.optimizer_index, self.counts, self.transform.max_skips, self._owner)
        return Outcome(nonfinite_name=name)
