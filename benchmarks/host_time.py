"""What does ZNorm cost the host of a GPU? Needs no GPU: the kernels are replaced by nothing.

Prints microseconds per tensor for 1,000 tensors: of the Triton backend alone, of `znorm_`, and of a step of an
optimizer that `attach` was applied to, checks and selection included. Beside it what a few attributes of a tensor cost,
as a measure of the machine. Ten seconds.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from lightning_znorm import ZNorm, attach, functional, znorm_
from lightning_znorm.backends import choice, triton

COUNT = 1000


class NoStep(torch.optim.Optimizer):
    """Has hooks, and changes nothing."""

    def step(self, closure: Any = None) -> None:
        """Do nothing."""


class NoKernel:
    """Stands where the kernel is."""

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *args, **kwargs: None


def microseconds(call: Callable[[], Any]) -> float:
    """Return the median per tensor."""
    found = []
    for _ in range(50):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return 1e6 * statistics.median(found) / COUNT


def main() -> None:
    """Measure."""
    torch.set_num_threads(1)
    triton.measure_kernel = triton.conclude_kernel = triton.apply_kernel = NoKernel()
    functional.choose = lambda gradients: choice.load_triton()
    parameters = [nn.Parameter(torch.zeros(10)) for _ in range(COUNT)]
    gradients = [torch.randn(10) for _ in range(COUNT)]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer, plain = NoStep(parameters, {}), NoStep(parameters, {})
    attach(optimizer, ZNorm())
    calls = {
        "Triton backend": lambda: triton.znorm_(gradients, 1e-10),
        "znorm_": lambda: znorm_(parameters),
        "a step of attach": optimizer.step,
        "the same without it": plain.step,
        "grad, dtype, device, numel": lambda: [(p.grad.dtype, p.grad.device, p.grad.numel()) for p in parameters],
    }
    for name, call in calls.items():
        print(f"{name:28s} {microseconds(call):.2f} microseconds per tensor")


if __name__ == "__main__":
    main()
