"""Where in an optimizer's step a hook is running."""

import sys
from types import FrameType

from torch.optim import Optimizer
from torch.optim import optimizer as _torch_optimizer


def steps_on_stack(optimizer: Optimizer) -> int:
    """Return how many calls of ``step`` with hooks of this very optimizer are being made now, one inside the other.

    PyTorch wraps the ``step`` of each optimizer class. Where a subclass calls ``super().step()`` and an optimizer of
    the parent class has been made before, both are wrapped, and each hook is called twice per step. Counting calls by
    the hooks themselves would go wrong after a step that raised an error, hence the look at the stack.
    """
    depth = 0
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_name == "wrapper" and code.co_filename == _torch_optimizer.__file__:
            depth += frame.f_locals.get("self") is optimizer
        frame = frame.f_back
    return depth
