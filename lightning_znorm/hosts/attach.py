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
from lightning_znorm.engine.scaling import scale_given_to_step, scaler_skips_step
from lightning_znorm.engine.selection import Named, parameters_of
from lightning_znorm.engine.stepping import Keywords, StepHooks, is_stepping
from lightning_znorm.engine.transform import Transform
from lightning_znorm.errors import ArgumentTypeError, describe
from lightning_znorm.functional import GradientStats
from lightning_znorm.hosts.reporting import warn_about_skip
from lightning_znorm.hosts.wrappers import find_module, find_optimizer

__all__ = ["AttachedTransform", "attach"]

_IDLE = "`exclude` and `min_ndim` leave out every parameter, or no parameter has a `.grad`"


def attach(
    optimizer: Optimizer, transform: Transform, module: nn.Module | None = None, strict: bool = False
) -> "AttachedTransform":
    """Make an optimizer transform its gradients at the start of every step, without a Trainer.

    The transform runs inside ``optimizer.step()``: after whatever the loop does before (clipping included), after
    ``GradScaler.step`` or Fabric have unscaled the gradients, and before the optimizer's own weight decay. For
    optimizers that unscale in their kernel (``fused=True``) the result is scaled accordingly. A closure given to
    ``step`` is evaluated first.

    One transform may be attached to several optimizers; each counts its own steps. With Fabric and accelerate, attach
    after ``fabric.setup`` and ``accelerator.prepare``, so that the strategy and the precision can be checked.

    Args:
        optimizer: The optimizer, as it is or as Fabric or accelerate has wrapped it; in a callback of
            ``transformers.Trainer``, the one that ``on_train_begin`` is given.
        transform: What to attach, such as ``ZNorm()``. Its ``start_step`` and ``stop_step`` count this optimizer's
            steps. ``nonfinite="skip"`` and ``"raise"`` decide together with the other ranks where
            ``torch.distributed`` is initialized, so that all ranks must step this optimizer together.
        module: The whole module, for the names that ``exclude`` and errors use. Not needed if the optimizer was made
            with ``model.named_parameters()``, or without ``exclude``.
        strict: Whether a step in which the transform should run and changes no gradient is an error. If not, there is
            a warning if that was so in all steps, when the handle is removed or goes away with the optimizer.

    Returns:
        A handle, whose ``remove()`` undoes it.

    Raises:
        ArgumentTypeError: If an argument is of the wrong type, or ``exclude`` is set and there are no names.
        MisconfigurationError: If the optimizer, a parameter, the strategy or precision of Fabric or accelerate is not
            supported, a pattern in ``exclude`` matches no name, or the same transform is at work on the optimizer
            already. At a step, with ``strict``: if it changes no gradient.

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
        raise _wrong_type("transform", "a transform such as `ZNorm()`", transform)
    optimizer = find_optimizer(optimizer, type(transform).__name__, transform.enabled)
    if not isinstance(optimizer, Optimizer):
        raise _wrong_type("optimizer", "a `torch.optim.Optimizer`", optimizer)
    if module is not None and not isinstance(module, nn.Module):
        raise _wrong_type("module", "a `torch.nn.Module`", module)
    if transform.enabled and not (hasattr(optimizer, "param_groups") and make_hookable(optimizer)):
        raise ArgumentTypeError(
            f"Nothing can be attached to the optimizer `{type(optimizer).__name__}`, which does not call"
            " `Optimizer.__init__`. If a learning-rate scheduler has wrapped its `step`, attach before making that. If"
            " it wraps another optimizer, attach to that one."
        )
    return AttachedTransform(optimizer, transform, module, strict)


class AttachedTransform:
    """A transform at work on one optimizer; made by :func:`attach`.

    Also a context manager that removes it on exit.

    Attributes:
        transform: The transform.
        step: Number of steps that the optimizer has made with it; one that raises an error does not count.
        epoch: What :meth:`~lightning_znorm.GradientTransform.should_transform` is given as the epoch; to be set by the
            loop if a schedule of its own needs it.
        stats: Statistics of the last step's raw gradients, ``None`` if none was transformed in it.

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
        """Give the optimizer its plain steps back; doing it twice does no harm."""
        if self._optimizer is None:
            return
        self._hooks.remove()
        self._inner_hooks.remove()
        release(self._optimizer, self.transform)
        self._optimizer = self._module = None
        self._inner.clear()
        del self._engine  # it knows the parameters
        self._warn()

    def state_dict(self) -> dict[str, Any]:
        """Return the counters, to be kept in a checkpoint beside the optimizer's state."""
        return {"step": self.step, "epoch": self.epoch, **self._counts.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the counters; those that are missing are 0."""
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
        self._hooks = StepHooks(self._begin_step, self._apply, self._end_step, self._refuse_reevaluation)
        self._hooks.add([optimizer])
        self._inner = dict(_inner_optimizers(optimizer))
        self._inner_hooks = StepHooks(begin=self._refuse_inner_step)
        self._inner_hooks.add(self._inner.values())
        self._record = _Record(self._owner, type(optimizer).__name__)
        self._warn = finalize(self, self._record.warn)

    def _begin_step(self, optimizer: Optimizer) -> None:
        if self.transform.enabled:
            self._record.begun += 1
            self.stats = None

    def _apply(self, optimizer: Optimizer, keywords: Keywords) -> None:
        """Transform the gradients of the step that is being made."""
        if self._optimizer is None or not self.transform.enabled:  # removed by the closure, or switched off
            return
        step = Step(
            optimizer,
            number=self.step,
            epoch=self.epoch,
            grad_scale=scale_given_to_step(optimizer, keywords),
            scaler_skips=scaler_skips_step(optimizer, keywords),
            ranks=initialized_ranks(),
        )
        outcome = self._engine(step)
        self.stats = outcome.stats
        self._record.has_worked |= outcome.stats is not None or outcome.nonfinite is not None
        if outcome.nonfinite is not None and self.skipped_steps == 1:
            warn_about_skip(self._owner, outcome.nonfinite, self.step)
        if outcome.is_idle and self._strict:
            raise MisconfigurationError(
                f"`{self._owner}`, attached with `strict=True`, would change no gradient in step {self.step} of"
                f" `{type(optimizer).__name__}`: {_IDLE}."
            )

    def _end_step(self, optimizer: Optimizer) -> None:
        if self.transform.enabled:
            self.step += 1
            self._record.ended += 1

    def _refuse_reevaluation(self, optimizer: Optimizer) -> None:
        if self.transform.enabled:
            refuse_closure_reevaluation(self._owner, optimizer)

    def _refuse_inner_step(self, optimizer: Optimizer) -> None:
        """Warn of, or with ``strict`` refuse, a step that an inner optimizer makes without the outer one."""
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

    def _name_parameters(self, optimizer: Optimizer) -> Named:
        if self._module is not None:
            return self._module.named_parameters(remove_duplicate=False)
        if self.transform.exclude and not all("param_names" in group for group in optimizer.param_groups):
            raise ArgumentTypeError(
                f"Argument `exclude` of `{self._owner}` needs the names of the parameters, which the optimizer does not"
                " know. Pass `module=` to `attach`, or make the optimizer with `model.named_parameters()`."
            )
        return _named_by_optimizer(optimizer)


@dataclass
class _Record:
    """What a handle has done; outlives it, for the warning."""

    owner: str
    optimizer: str
    begun: int = 0
    ended: int = 0
    has_worked: bool = False
    was_bypassed: bool = False

    def warn(self) -> None:
        """Warn if nothing was done."""
        if self.has_worked or self.was_bypassed or self.ended < self.begun:  # a step that raised has said so itself
            return
        if self.ended:
            what = (
                f"changed no gradient in {self.ended} steps: none was inside `start_step` and `stop_step`, or {_IDLE}"
            )
        else:
            what = "saw no step: `step()` of this optimizer was not called. Attach to the one that your loop steps"
        rank_zero_warn(f"`{self.owner}`, attached to `{self.optimizer}`, {what}.")


def _named_by_optimizer(optimizer: Optimizer) -> Iterator[tuple[str, Tensor]]:
    for i, group in enumerate(optimizer.param_groups):
        numbers = (f"param_groups[{i}]['params'][{j}]" for j in range(len(group["params"])))
        yield from zip(group.get("param_names", numbers), group["params"], strict=False)


def _inner_optimizers(optimizer: Optimizer) -> Iterator[tuple[str, Optimizer]]:
    """Yield what holds optimizers of some of the same parameters, an attribute or an entry of one, as in wrappers."""
    parameters = set(parameters_of(optimizer))
    for attribute, value in vars(optimizer).items():
        for key, entry in _entries(value):
            if isinstance(entry, Optimizer) and make_hookable(entry) and parameters & {*parameters_of(entry)}:
                yield attribute if key is None else f"{attribute}[{key!r}]", entry


def _entries(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, (list, tuple)):
        return enumerate(value)
    return value.items() if isinstance(value, dict) else [(None, value)]


def _wrong_type(argument: str, expected: str, value: object) -> ArgumentTypeError:
    remedy = "The order is `attach(optimizer, transform, module)`."
    if isinstance(value, type) and issubclass(value, Transform):
        remedy = f"Make one: `{value.__name__}()`."
    return ArgumentTypeError(f"Expected argument `{argument}` to be {expected}, but got {describe(value)}. {remedy}")
