"""What a step hook has to know about the call of ``step``: is it the outermost, and does it bring a closure."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from torch.optim import Optimizer
from torch.optim import optimizer as _torch_optimizer


def is_nested_step(optimizer: Optimizer) -> bool:
    """Say, in a step hook, whether it runs for a ``super().step()`` inside the step proper.

    PyTorch wraps the ``step`` of each optimizer class. Where a subclass calls its parent's and an optimizer of the
    parent class has been made before, both are wrapped, and each hook is called twice per step. Counting these calls
    would go wrong after a step that raised an error, hence a look at the stack, for such classes alone.
    """
    wrapped = [cls for cls in type(optimizer).__mro__ if getattr(vars(cls).get("step"), "hooked", False)]
    return len(wrapped) > 1 and _calls_on_stack(optimizer) > 1


def closure_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any] | None:
    """Return the closure among the arguments of ``step``, the optimizer itself being the first of them."""
    closure = args[1] if len(args) > 1 else kwargs.get("closure")
    return closure if callable(closure) else None


def with_closure(
    args: tuple[Any, ...], kwargs: dict[str, Any], closure: Callable[[], Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of ``step`` with another closure."""
    if len(args) > 1:
        return (args[0], closure, *args[2:]), kwargs
    return args, {**kwargs, "closure": closure}


def _calls_on_stack(optimizer: Optimizer) -> int:
    calls = 0
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_name == "wrapper" and code.co_filename == _torch_optimizer.__file__:
            calls += frame.f_locals.get("self") is optimizer
        frame = frame.f_back
    return calls
