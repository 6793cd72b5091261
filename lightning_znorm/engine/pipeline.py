"""One step through one engine: schedule, select, decide, check, transform."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_znorm.backends.gradients import are_plain, require_transformable
from lightning_znorm.engine.checks import refuse_capture, refuse_flattened, refuse_parameters
from lightning_znorm.engine.groups import Ranks
from lightning_znorm.engine.nonfinite import SkipCounts, find_nonfinite, refuse_nonfinite, skip
from lightning_znorm.engine.selection import Named, Selected, Selection
from lightning_znorm.engine.transform import Transform
from lightning_znorm.functional import GradientStats


@dataclass(frozen=True)
class Step:
    """An optimizer that is about to step; made by a host.

    Attributes:
        optimizer: The optimizer.
        row: Its number among those of the training; steps that are skipped in a row are counted by it.
        number: How many steps were made before, for the schedule.
        epoch: How many epochs were completed before, for the schedule.
        grad_scale: The GradScaler's scale by which the gradients are still multiplied, ``None`` for none.
        scaler_skips: Whether a GradScaler will skip the step by itself if a gradient is not finite.
        ranks: Who decides about the step together.

    """

    optimizer: Optimizer
    row: int = 0
    number: int = 0
    epoch: int = 0
    grad_scale: Tensor | None = None
    scaler_skips: bool = False
    ranks: Ranks = field(default_factory=Ranks)


@dataclass(frozen=True)
class Outcome:
    """What became of a step.

    Attributes:
        was_due: Whether the schedule has the transform run in this step.
        parameters: Those whose gradients were transformed.
        stats: Statistics of these gradients before, ``None`` if there were none.
        nonfinite: Name of the parameter for whose sake the step does nothing, ``None`` if it is made.

    """

    was_due: bool = True
    parameters: list[Tensor] = field(default_factory=list)
    stats: GradientStats | None = None
    nonfinite: str | None = None

    @property
    def is_idle(self) -> bool:
        """Whether the transform should have done something, and found no gradient to do it to."""
        return self.was_due and self.stats is None and self.nonfinite is None


class Engine:
    """One transform at work in one training.

    Args:
        transform: The transform.
        named: Returns the names and parameters of the whole module, a tied parameter once for each of its names.
        counts: Where to count skipped steps.

    Attributes:
        transform: The transform.
        counts: Steps skipped so far.
        selection: Which parameters are selected, and their names.

    Raises:
        MisconfigurationError: If a pattern of ``exclude`` matches no name.

    """

    def __init__(self, transform: Transform, named: Callable[[], Named], counts: SkipCounts) -> None:
        self.transform = transform
        self.counts = counts
        self._owner = type(transform).__name__
        self.selection = Selection(named, transform.exclude, transform.min_ndim, self._owner)
        self._checked: Selected | None = None

    def check(self, modules: Iterable[nn.Module], parameters: Iterable[Tensor], under_scaler: bool = False) -> None:
        """Refuse parameters that will have a gradient that cannot be transformed.

        Args:
            modules: All modules, as far as they are known.
            parameters: All parameters.
            under_scaler: Whether an enabled GradScaler multiplies the loss.

        Raises:
            MisconfigurationError: Naming the parameter and the remedy.

        """
        selected = filter(self.selection.is_selected, parameters)
        refuse_parameters(self._owner, modules, selected, self.selection.name_of, under_scaler)

    def __call__(self, step: Step) -> Outcome:
        """Transform the gradients of the optimizer's selected parameters, or skip the step.

        All ranks of ``step.ranks`` must call this in the same step.

        Raises:
            MisconfigurationError: If the gradients are a kind of shard, or a CUDA graph captures a step that waits.
            NonfiniteGradientError: Naming the parameter, with ``nonfinite="raise"`` or after ``max_skips`` skips.
            ArgumentTypeError: If a gradient cannot be transformed.

        """
        transform = self.transform
        if not transform.should_transform(step.number, step.epoch):
            return Outcome(was_due=False)
        refuse_capture(self._owner, nonfinite=transform.nonfinite, log_stats=transform.log_stats)
        selected = self.selection.of(step.optimizer)
        if selected is not self._checked:
            refuse_flattened(self._owner, selected.selected)
            self._checked = selected
        nonfinite = self._find_nonfinite(step, selected)
        if nonfinite is not None:
            name = self.selection.name_of(nonfinite)
            if transform.nonfinite == "raise":
                refuse_nonfinite(name, self._owner, step.scaler_skips)
            skip(selected.parameters, name, step.row, self.counts, transform.max_skips, self._owner)
            return Outcome(nonfinite=name)
        parameters, gradients = [], []
        for parameter in selected.selected:
            gradient = parameter.grad
            if gradient is not None and gradient.numel():
                parameters.append(parameter)
                gradients.append(gradient)
        if not parameters:
            return Outcome()
        is_scaled = step.grad_scale is not None
        if not are_plain(gradients, is_scaled):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                require_transformable(gradient, self.selection.name_of(parameter), is_scaled)
        with torch.no_grad():
            return Outcome(True, parameters, transform.transform(parameters, step.grad_scale))

    def _find_nonfinite(self, step: Step, selected: Selected) -> Tensor | None:
        """Return a parameter whose gradient is not finite, where that matters; a finite step ends a row of skips."""
        mode = self.transform.nonfinite
        if mode == "propagate" or (mode == "skip" and step.scaler_skips):
            return None
        found = find_nonfinite(selected.parameters, step.ranks)
        if found is None:
            self.counts.in_a_row.pop(step.row, None)
        return found
