"""Hooks on the outermost call of an optimizer's ``step``: its beginning, its gradients and its end."""

from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.optim import Optimizer

from lightning_znorm._torch import calls_hooks_of_parents, count_step_calls

Args = tuple[Any, ...]
Keywords = dict[str, Any]


class StepHooks:
    """Calls functions during each step of its optimizers, until :meth:`remove`; keeps no optimizer alive.

    If a subclass calls its parent's ``step``, PyTorch may call its hooks for both; these functions are called for the
    outermost call only. ``torch.compile`` does not trace into them.

    Args:
        on_begin: Called with the optimizer when a step begins.
        on_gradients: Called with the optimizer and the keyword arguments of ``step`` once the gradients are computed:
            at the beginning without a closure, else after each evaluation.
        on_end: Called with the optimizer after a step, unless it raised an error.
        on_reevaluation: Called with the optimizer before its closure is evaluated again within a step.

    """

    def __init__(
        self,
        on_begin: Callable[[Optimizer], None] | None = None,
        on_gradients: Callable[[Optimizer, Keywords], None] | None = None,
        on_end: Callable[[Optimizer], None] | None = None,
        on_reevaluation: Callable[[Optimizer], None] | None = None,
    ) -> None:
        self._on_begin, self._on_gradients = on_begin, on_gradients
        self._on_end, self._on_reevaluation = on_end, on_reevaluation
        self._handles: WeakKeyDictionary[Optimizer, list[Any]] = WeakKeyDictionary()

    def __contains__(self, optimizer: object) -> bool:
        return optimizer in self._handles

    def add(self, optimizers: Iterable[Optimizer]) -> None:
        """Add hooks to the optimizers, to each once."""
        for optimizer in optimizers:
            if optimizer in self._handles:
                continue
            # free: creating an optimizer has imported what `disable` needs
            handles = [optimizer.register_step_pre_hook(torch.compiler.disable(self._before_step))]
            if self._on_end is not None:
                handles.append(optimizer.register_step_post_hook(torch.compiler.disable(self._after_step)))
            self._handles[optimizer] = handles

    def remove(self) -> None:
        """Remove the hooks from all optimizers."""
        for handles in self._handles.values():
            for handle in handles:
                handle.remove()
        self._handles.clear()

    def _before_step(self, optimizer: Optimizer, args: Args, keywords: Keywords) -> tuple[Args, Keywords] | None:
        if _is_nested(optimizer):
            return None
        if self._on_begin is not None:
            self._on_begin(optimizer)
        if self._on_gradients is None:
            return None
        closure = args[1] if len(args) > 1 else keywords.get("closure")
        if not callable(closure):
            self._on_gradients(optimizer, keywords)
            return None
        wrapped_closure = self._wrap_closure(closure, optimizer, keywords)
        return (
            ((args[0], wrapped_closure, *args[2:]), keywords)
            if len(args) > 1
            else (args, {**keywords, "closure": wrapped_closure})
        )

    def _wrap_closure(self, closure: Callable[[], Any], optimizer: Optimizer, keywords: Keywords) -> Callable[[], Any]:
        was_evaluated = False

        def wrapped_closure() -> Any:
            nonlocal was_evaluated
            if was_evaluated and self._on_reevaluation is not None:
                self._on_reevaluation(optimizer)
            was_evaluated = True
            loss = closure()
            if self._on_gradients is not None:
                self._on_gradients(optimizer, keywords)
            return loss

        return wrapped_closure

    def _after_step(self, optimizer: Optimizer, args: Args, keywords: Keywords) -> None:
        if self._on_end is not None and not _is_nested(optimizer):
            self._on_end(optimizer)


def is_stepping(optimizer: Optimizer) -> bool:
    """Return whether a step of the optimizer is being made."""
    return count_step_calls(optimizer) > 0


def _is_nested(optimizer: Optimizer) -> bool:
    """Return, in a step hook, whether it runs for a ``super().step()`` inside the outermost step."""
    # by the stack: a counter of calls would be wrong after a step that raised an error
    return calls_hooks_of_parents(optimizer) and count_step_calls(optimizer) > 1
