"""The outermost call of an optimizer's ``step``: its beginning, when its gradients are there, and its end."""

from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.optim import Optimizer

from lightning_znorm._torch import calls_hooks_of_parents, count_step_calls

Args = tuple[Any, ...]
Keywords = dict[str, Any]


class StepHooks:
    """Calls functions in the course of each step of some optimizers, until :meth:`remove`; keeps none of them alive.

    Where a subclass calls its parent's ``step``, PyTorch may call its hooks for both; these functions are called for
    the outermost alone. ``torch.compile`` does not trace into them.

    Args:
        begin: Called with the optimizer when a step begins.
        ready: Called with the optimizer and the keyword arguments of ``step`` when the gradients are there: at the
            beginning without a closure, else after each evaluation.
        end: Called with the optimizer when a step has been made; not after one that raised an error.
        reevaluate: Called with the optimizer before its closure is evaluated again within a step.

    """

    def __init__(
        self,
        begin: Callable[[Optimizer], None] | None = None,
        ready: Callable[[Optimizer, Keywords], None] | None = None,
        end: Callable[[Optimizer], None] | None = None,
        reevaluate: Callable[[Optimizer], None] | None = None,
    ) -> None:
        self._begin, self._ready, self._end, self._reevaluate = begin, ready, end, reevaluate
        self._handles: WeakKeyDictionary[Optimizer, list[Any]] = WeakKeyDictionary()

    def __contains__(self, optimizer: object) -> bool:
        return optimizer in self._handles

    def add(self, optimizers: Iterable[Optimizer]) -> None:
        """Watch the optimizers, each once."""
        for optimizer in optimizers:
            if optimizer in self._handles:
                continue
            # an optimizer has imported what `disable` would import
            handles = [optimizer.register_step_pre_hook(torch.compiler.disable(self._before))]
            if self._end is not None:
                handles.append(optimizer.register_step_post_hook(torch.compiler.disable(self._after)))
            self._handles[optimizer] = handles

    def remove(self) -> None:
        """Watch none of them any more."""
        for handles in self._handles.values():
            for handle in handles:
                handle.remove()
        self._handles.clear()

    def _before(self, optimizer: Optimizer, args: Args, keywords: Keywords) -> tuple[Args, Keywords] | None:
        if _is_nested(optimizer):
            return None
        if self._begin is not None:
            self._begin(optimizer)
        if self._ready is None:
            return None
        closure = args[1] if len(args) > 1 else keywords.get("closure")
        if not callable(closure):
            self._ready(optimizer, keywords)
            return None
        watched = self._watch(closure, optimizer, keywords)
        return ((args[0], watched, *args[2:]), keywords) if len(args) > 1 else (args, {**keywords, "closure": watched})

    def _watch(self, closure: Callable[[], Any], optimizer: Optimizer, keywords: Keywords) -> Callable[[], Any]:
        was_evaluated = False

        def watched() -> Any:
            nonlocal was_evaluated
            if was_evaluated and self._reevaluate is not None:
                self._reevaluate(optimizer)
            was_evaluated = True
            loss = closure()
            if self._ready is not None:
                self._ready(optimizer, keywords)
            return loss

        return watched

    def _after(self, optimizer: Optimizer, args: Args, keywords: Keywords) -> None:
        if self._end is not None and not _is_nested(optimizer):
            self._end(optimizer)


def is_stepping(optimizer: Optimizer) -> bool:
    """Say whether a step of the optimizer is being made."""
    return count_step_calls(optimizer) > 0


def _is_nested(optimizer: Optimizer) -> bool:
    """Say, in a step hook, whether it runs for a ``super().step()`` inside the step proper.

    Counting the calls would go wrong after a step that raised an error, hence a look at the stack, for such classes
    alone.
    """
    return calls_hooks_of_parents(optimizer) and count_step_calls(optimizer) > 1
