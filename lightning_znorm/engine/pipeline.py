"""One optimizer step: check the schedule, select parameters, look for inf and NaN, transform the gradients."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_znorm.backends.choice import agree, is_capturing, may_use_triton
from lightning_znorm.backends.gradients import are_plain, require_transformable
from lightning_znorm.engine.checks import refuse_capture, refuse_flattened, refuse_parameters
from lightning_znorm.engine.groups import Ranks
from lightning_znorm.engine.nonfinite import SkipCounts, find_nonfinite_parameter, refuse_nonfinite, skip_step
from lightning_znorm.engine.selection import NamedParameters, OptimizerParameters, Selection
from lightning_znorm.engine.transform import Transform
from lightning_znorm.functional import GradientStats


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
        selection: Selects parameters, and names them, see :class:`.Selection` for ``name_parameters``.

    """

    def __init__(
        self, transform: Transform, name_parameters: Callable[[], NamedParameters], counts: SkipCounts
    ) -> None:
        self.transform = transform
        self.counts = counts
        self._owner = type(transform).__name__
        self.selection = Selection(name_parameters, transform.exclude, transform.min_ndim, self._owner)
        self._checked_parameters: OptimizerParameters | None = None
        self._has_agreed = False

    def check(self, modules: Iterable[nn.Module], parameters: Iterable[Tensor], under_scaler: bool = False) -> None:
        """Refuse parameters whose gradients cannot be transformed, see :func:`.refuse_parameters`."""
        selected = filter(self.selection.is_selected, parameters)
        refuse_parameters(self._owner, modules, selected, self.selection.name_of, under_scaler)

    def __call__(self, step: Step) -> Outcome:
        """Transform the gradients of the optimizer's selected parameters, or skip the step.

        All ranks of ``step.ranks`` must call this in the same step.

        Raises:
            MisconfigurationError: If gradients are shards, or a CUDA graph captures a step that waits for the device.
            NonfiniteGradientError: Naming the parameter, with ``nonfinite="raise"`` or after ``max_skips`` skips.
            ArgumentTypeError: If a gradient cannot be transformed.

        """
        transform = self.transform
        if not transform.should_transform(step.number, step.epoch):
            return Outcome(was_due=False)
        refuse_capture(self._owner, nonfinite=transform.nonfinite, log_stats=transform.log_stats)
        parameters = self.selection.select(step.optimizer)
        if parameters is not self._checked_parameters:
            refuse_flattened(self._owner, parameters.selected)
            self._checked_parameters = parameters
        self._agree(step, parameters)
        nonfinite = self._find_nonfinite(step, parameters)
        if nonfinite is not None:
            name = self.selection.name_of(nonfinite)
            if transform.nonfinite == "raise":
                refuse_nonfinite(name, self._owner, step.scaler_skips)
            skip_step(parameters.unique, name, step.optimizer_index, self.counts, transform.max_skips, self._owner)
            return Outcome(nonfinite_name=name)
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

    def _agree(self, step: Step, parameters: OptimizerParameters) -> None:
        """Let all ranks take the same backend, once and before a gradient is edited.

        Ranks that may step on their own decide on their own: waiting for the others could have no end.
        """
        ranks = step.ranks
        are_in_step = ranks.are_in_step or self.transform.nonfinite != "propagate"
        if self._has_agreed or not (ranks.is_distributed and are_in_step) or is_capturing():
            return
        self._has_agreed = True
        devices = {parameter.device for parameter in parameters.selected}
        if any(map(may_use_triton, devices)):
            agree(parameters.selected, lambda works: ranks.reduce_min(works, devices))

    def _find_nonfinite(self, step: Step, parameters: OptimizerParameters) -> Tensor | None:
        """Return a parameter with an inf or NaN, unless these propagate; without one, reset the consecutive skips."""
        mode = self.transform.nonfinite
        if mode == "propagate" or (mode == "skip" and step.scaler_skips):
            return None
        nonfinite = find_nonfinite_parameter(parameters.unique, step.ranks)
        if nonfinite is None:
            self.counts.consecutive_skips.pop(step.optimizer_index, None)
        return nonfinite
