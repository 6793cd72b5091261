"""Gradient transforms outside Lightning's Trainer: in plain PyTorch, Fabric, accelerate and transformers."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from weakref import finalize

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_znorm._lightning import MisconfigurationError, rank_zero_warn
from lightning_znorm._torch import make_hookable
from lightning_znorm.engine.checks import refuse_closure_reevaluation, refuse_optimizer
from lightning_znorm.engine.claims import claim, release
from lightning_znorm.engine.groups import initialized_ranks
from lightning_znorm.engine.nonfinite import SkipCounts
from lightning_znorm.engine.pipeline import Engine, Step
from lightning_znorm.engine.scaling import find_pending_scale_in_step, scaler_skips_step
from lightning_znorm.engine.selection import NamedParameters, parameters_of
from lightning_znorm.engine.stepping import Keywords, StepHooks, is_stepping
from lightning_znorm.engine.transform import Transform
from lightning_znorm.errors import ArgumentTypeError, describe
from lightning_znorm.functional import GradientStats
from lightning_znorm.hosts.reporting import warn_about_skip
from lightning_znorm.hosts.wrappers import find_module, find_optimizer

__all__ = ["AttachedTransform", "attach"]

_IDLE_REASON = "`exclude` and `min_ndim` leave out every parameter, or no parameter has a `.grad`"


def attach(
    optimizer: Optimizer, transform: Transform, module: nn.Module | None = None, strict: bool = False
) -> "AttachedTransform":
    """Make an optimizer transform its gradients at the start of every step, without a Trainer.

    The transform runs inside ``optimizer.step()``: after all that the loop does before it (clipping included), after
    ``GradScaler.step`` or Fabric have unscaled the gradients, and before the optimizer adds its weight decay. For
    optimizers that unscale in their kernel (``fused=True``) the result is scaled accordingly. A closure passed to
    ``step`` is evaluated first.

    One transform may be attached to several optimizers; each counts its own steps. With Fabric and accelerate, attach
    after ``fabric.setup`` and ``accelerator.prepare``, so that the strategy and the precision can be checked.

    Args:
        optimizer: The optimizer, plain or wrapped by Fabric or accelerate; in a callback of ``transformers.Trainer``,
            the argument of ``on_train_begin``.
        transform: The transform to attach, such as ``ZNorm()``. Its ``start_step`` and ``stop_step`` count the steps of
            this optimizer. ``nonfinite="skip"`` and ``"raise"`` decide together with the other ranks if
            ``torch.distributed`` is initialized, so all ranks must step this optimizer together.
        module: The whole module, for the names that ``exclude`` and errors use. Not needed without ``exclude``, or if
            the optimizer was created with ``model.named_parameters()``.
        strict: Whether it is an error if the transform is due in a step and changes no gradient. If ``False``, there is
            a warning if this holds for all steps, when the handle is removed or deleted with the optimizer.

    Returns:
        A handle; its ``remove()`` detaches the transform.

    Raises:
        ArgumentTypeError: If an argument is of the wrong type, or ``exclude`` is set and the parameters have no names.
        MisconfigurationError: If the optimizer, a parameter, the strategy or precision of Fabric or accelerate is not
            supported, a pattern in ``exclude`` matches no name, or the same transform works on the optimizer already.
            At a step, with ``strict``: if it changes no gradient.

    Example::

        >>> import torch
        >>> from lightning_znorm import ZNorm, attach
        >>> model = torch.nn.Linear(4, 3)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        >>> handle = attach(optimizer, ZNorm(min_ndim=2), strict=True)
        >>> model(torch.eye(4)).square().sum().backward()
        >>> optimizer.step()
        >>> model.weight.grad.std(correction=0).round(decimals=4), handle.step
        (tensor(1.), 1)
        >>> handle.remove()

    """
    if not isinstance(transform, Transform):
        raise _make_type_error("transform", "a transform such as `ZNorm()`", transform)
    optimizer = find_optimizer(optimizer, type(transform).__name__, transform.enabled)
    if not isinstance(optimizer, Optimizer):
        raise _make_type_error("optimizer", "a `torch.optim.Optimizer`", optimizer)
    if module is not None and not isinstance(module, nn.Module):
        raise _make_type_error("module", "a `torch.nn.Module`", module)
    if transform.enabled and not (hasattr(optimizer, "param_groups") and make_hookable(optimizer)):
        raise ArgumentTypeError(
            f"Nothing can be attached to the optimizer `{type(optimizer).__name__}`, which does not call"
            " `Optimizer.__init__`. If a learning-rate scheduler has wrapped its `step`, attach before creating the"
            " scheduler. If it wraps another optimizer, attach to that one."
        )
    return AttachedTransform(optimizer, transform, module, strict)


class AttachedTransform:
    """A transform attached to one optimizer; created by :func:`attach`.

    As a context manager, it removes the transform on exit.

    Attributes:
        transform: The transform.
        step: Number of steps that the optimizer has made with it; a step that raises an error does not count.
        epoch: The epoch that is passed to :meth:`~lightning_znorm.GradientTransform.should_transform`; set it in the
            loop if your schedule needs it.
        stats: Statistics of the raw gradients of the last step, ``None`` if none was transformed.

    """

    def __init__(
        self, optimizer: Optimizer, transform: Transform, module: nn.Module | None, strict: bool = False
    ) -> None:
        self.transform = transform
        self.step = 0
        self.epoch = 0
        self.stats: GradientStats | None = None
        self._counts = SkipCounts()
        self._owner = type(transform).__name__
        self._strict = strict
        self._module = None if module is None else find_module(module)
        self._optimizer: Optimizer | None = None
        if transform.enabled:
            self._attach(optimizer)

    @property
    def skipped_steps(self) -> int:
        """Number of steps that ``nonfinite="skip"`` has skipped."""
        return self._counts.skipped_steps

    def remove(self) -> None:
        """Detach the transform from the optimizer; a second call has no effect."""
        if self._optimizer is None:
            return
        self._hooks.remove()
        self._inner_hooks.remove()
        release(self._optimizer, self.transform)
        self._optimizer = self._module = None
        self._inner.clear()
        del self._engine  # it refers to the parameters
        self._warn()

    def state_dict(self) -> dict[str, Any]:
        """Return the counters, for a checkpoint."""
        return {"step": self.step, "epoch": self.epoch, **self._counts.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the counters; missing ones are 0."""
        self.step, self.epoch = state_dict.get("step", 0), state_dict.get("epoch", 0)
        self._counts.load_state_dict(state_dict)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._optimizer is not None and kind is not None:
            self._warn.detach()  # the error matters more
        self.remove()

    def _attach(self, optimizer: Optimizer) -> None:
        self._engine = Engine(self.transform, lambda: self._name_parameters(optimizer), self._counts)
        refuse_optimizer(self._owner, optimizer)
        self._engine.check([] if self._module is None else self._module.modules(), parameters_of(optimizer))
        claim(optimizer, self.transform, "attached to")
        if self.transform.log_stats:
            rank_zero_warn(
                f"`log_stats={self.transform.log_stats!r}` of `{self._owner}` logs nothing outside a Trainer: read"
                " `stats` of the handle that `attach` returns."
            )
        self.transform._skip_counts.append(self._counts)
        self._optimizer = optimizer
        self._hooks = StepHooks(self._begin_step, self._transform_gradients, self._end_step, self._refuse_reevaluation)
        self._hooks.add([optimizer])
        self._inner = dict(_find_inner_optimizers(optimizer))
        self._inner_hooks = StepHooks(on_begin=self._report_inner_step)
        self._inner_hooks.add(self._inner.values())
        self._record = _StepRecord(self._owner, type(optimizer).__name__)
        self._warn = finalize(self, self._record.warn)

    def _begin_step(self, optimizer: Optimizer) -> None:
        if self.transform.enabled:
            self._record.steps_begun += 1
            self.stats = None

    def _transform_gradients(self, optimizer: Optimizer, keywords: Keywords) -> None:
        if self._optimizer is None or not self.transform.enabled:  # removed by the closure, or switched off
            return
        step = Step(
            optimizer,
            number=self.step,
            epoch=self.epoch,
            grad_scale=find_pending_scale_in_step(optimizer, keywords),
            scaler_skips=scaler_skips_step(optimizer, keywords),
            ranks=initialized_ranks(),
        )
        outcome = self._engine(step)
        self.stats = outcome.stats
        self._record.has_worked |= outcome.stats is not None or outcome.nonfinite_name is not None
        if outcome.nonfinite_name is not None and self.skipped_steps == 1:
            warn_about_skip(self._owner, outcome.nonfinite_name, self.step)
        if outcome.is_idle and self._strict:
            raise MisconfigurationError(
                f"`{self._owner}`, attached with `strict=True`, would change no gradient in step {self.step} of"
                f" `{type(optimizer).__name__}`: {_IDLE_REASON}."
            )

    def _end_step(self, optimizer: Optimizer) -> None:
        if self.transform.enabled:
            self.step += 1
            self._record.steps_ended += 1

    def _refuse_reevaluation(self, optimizer: Optimizer) -> None:
        if self.transform.enabled:
            refuse_closure_reevaluation(self._owner, optimizer)

    def _report_inner_step(self, optimizer: Optimizer) -> None:
        """Warn about, or with ``strict`` refuse, a step that an inner optimizer makes without the outer one."""
        outer = self._optimizer
        if outer is None or not self.transform.enabled or is_stepping(outer):
            return
        attribute = next(name for name, inner in self._inner.items() if inner is optimizer)
        message = (
            f"`{self._owner}` was bypassed: `{type(optimizer).__name__}` inside `{type(outer).__name__}` made a step"
            f" without `{type(outer).__name__}.step`, with gradients that were not transformed. Attach to"
            f" `optimizer.{attribute}`."
        )
        if self._strict:
            raise MisconfigurationError(message)
        if not self._record.was_bypassed:
            rank_zero_warn(message)
        self._record.was_bypassed = True

    def _name_parameters(self, optimizer: Optimizer) -> NamedParameters:
        if self._module is not None:
            return self._module.named_parameters(remove_duplicate=False)
        if self.transform.exclude and not all("param_names" in group for group in optimizer.param_groups):
            raise ArgumentTypeError(
                f"Argument `exclude` of `{self._owner}` needs the names of the parameters, which the optimizer does not"
                " have. Pass `module=` to `attach`, or create the optimizer with `model.named_parameters()`."
            )
        return _name_by_optimizer(optimizer)


@dataclass
class _StepRecord:
    """Steps made with a handle; it outlives the handle, to warn."""

    owner: str
    optimizer: str
    steps_begun: int = 0
    steps_ended: int = 0
    has_worked: bool = False
    was_bypassed: bool = False

    def warn(self) -> None:
        """Warn if no gradient was transformed."""
        has_failed = self.steps_ended < self.steps_begun  # a step raised an error
        if self.has_worked or self.was_bypassed or has_failed:
            return
        if self.steps_ended:
            problem = (
                f"changed no gradient in {self.steps_ended} steps: none was inside `start_step` and `stop_step`, or"
                f" {_IDLE_REASON}"
            )
        else:
            problem = "saw no step: `step()` of this optimizer was not called. Attach to the one that your loop steps"
        rank_zero_warn(f"`{self.owner}`, attached to `{self.optimizer}`, {problem}.")


def _name_by_optimizer(optimizer: Optimizer) -> Iterator[tuple[str, Tensor]]:
    for i, group in enumerate(optimizer.param_groups):
        numbers = (f"param_groups[{i}]['params'][{j}]" for j in range(len(group["params"])))
        yield from zip(group.get("param_names", numbers), group["params"], strict=False)


def _find_inner_optimizers(optimizer: Optimizer) -> Iterator[tuple[str, Optimizer]]:
    """Yield the optimizers inside a wrapper that share parameters with it, each after the attribute that holds it."""
    parameters = set(parameters_of(optimizer))
    for attribute, value in vars(optimizer).items():
        for key, entry in _iterate_entries(value):
            if isinstance(entry, Optimizer) and make_hookable(entry) and parameters & {*parameters_of(entry)}:
                yield attribute if key is None else f"{attribute}[{key!r}]", entry


def _iterate_entries(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, (list, tuple)):
        return enumerate(value)
    return value.items() if isinstance(value, dict) else [(None, value)]


def _make_type_error(argument: str, expected: str, value: object) -> ArgumentTypeError:
    remedy = "The order is `attach(optimizer, transform, module)`."
    if isinstance(value, type) and issubclass(value, Transform):
        remedy = f"Create one: `{value.__name__}()`."
    return ArgumentTypeError(f"Expected argument `{argument}` to be {expected}, but got {describe(value)}. {remedy}")
