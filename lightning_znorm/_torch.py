"""Every private attribute of PyTorch that this package reads, with what stands in for it where it is missing."""

import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler, grad_scaler
from torch.optim import Optimizer
from torch.optim import optimizer as _optimizer_module

COMPILED_PREFIX = "_orig_mod."  # of the names of parameters in what `torch.compile` returns

_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")


def is_unscaled(scaler: GradScaler, optimizer: Optimizer) -> bool | None:
    """Say whether a GradScaler has unscaled the optimizer's gradients, ``None`` if that cannot be known."""
    states, stages = getattr(scaler, "_per_optimizer_states", None), getattr(grad_scaler, "OptState", None)
    if states is None or stages is None:
        return None
    state = states.get(id(optimizer))
    return state is not None and state["stage"] is not stages.READY


def scale_of(scaler: GradScaler) -> Tensor | None:
    """Return the scale of a GradScaler, where possible without waiting for the device."""
    get_scale = getattr(scaler, "_get_scale_async", None)
    return torch.tensor(scaler.get_scale(), device="cpu") if get_scale is None else get_scale()


def unscales_itself(optimizer: Optimizer) -> bool | None:
    """Say whether the optimizer divides by a GradScaler's scale in its own step, ``None`` if that cannot be known."""
    unscales = getattr(optimizer, "_step_supports_amp_scaling", None)
    if unscales is None:
        return None if any(group.get("fused") for group in optimizer.param_groups) else False
    return bool(unscales)


def is_flattened(parameter: Tensor) -> bool:
    """Say whether FullyShardedDataParallel has made the parameter a piece of a flat one."""
    return "_fsdp_flattened" in vars(parameter)


def unwrap_compiled_module(module: nn.Module) -> nn.Module | None:
    """Return the module inside what ``torch.compile`` returns, ``None`` for any other."""
    return module._modules.get(COMPILED_PREFIX.rstrip("."))


def version_of(tensor: Tensor | None) -> int | None:
    """Return how often a tensor has been edited in place, ``None`` if that cannot be known."""
    return getattr(tensor, "_version", None)


def make_hookable(optimizer: Optimizer) -> bool:
    """Make PyTorch call the step hooks of an optimizer, and say whether it will.

    Classes that do not call ``Optimizer.__init__`` are not prepared for hooks before their first ``zero_grad()``; a
    step that was wrapped before, by a scheduler of the learning rate, goes on without them.
    """
    if not all(hasattr(optimizer, name) for name in _HOOKS):
        return False
    if "step" not in vars(optimizer) and not _is_hooked(type(optimizer).step):
        prepare = getattr(optimizer, "_patch_step_function", None)
        if prepare is not None:
            prepare()
    return _is_hooked(getattr(vars(optimizer).get("step"), "__wrapped__", type(optimizer).step))


def calls_hooks_of_parents(optimizer: Optimizer) -> bool:
    """Say whether PyTorch may call the step hooks again for a ``super().step()`` inside the step."""
    return sum(_is_hooked(vars(cls).get("step")) for cls in type(optimizer).__mro__) > 1


def count_step_calls(optimizer: Optimizer) -> int:
    """Return how many calls of the optimizer's ``step``, as PyTorch wraps it for its hooks, are on the stack."""
    calls = 0
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_name == "wrapper" and code.co_filename == _optimizer_module.__file__:
            calls += frame.f_locals.get("self") is optimizer
        frame = frame.f_back
    return calls


def copy_all_(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy tensors into others, at once where PyTorch can."""
    copy_ = getattr(torch, "_foreach_copy_", None)
    if copy_ is not None:
        copy_(targets, sources)
        return
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


def norm_all(tensors: Sequence[Tensor], norm_type: float, dtype: torch.dtype) -> Sequence[Tensor]:
    """Return the norm of each tensor, computed in a dtype, at once where PyTorch can."""
    norm = getattr(torch, "_foreach_norm", None)
    if norm is not None:
        norms: Sequence[Tensor] = norm(tensors, norm_type, dtype)
        return norms
    return [torch.linalg.vector_norm(tensor, norm_type, dtype=dtype) for tensor in tensors]


def multiply_all_(tensors: Sequence[Tensor], factor: Tensor) -> None:
    """Multiply tensors by a tensor of no dimensions, at once where PyTorch can."""
    multiply_ = getattr(torch, "_foreach_mul_", None)
    if multiply_ is not None:
        multiply_(tensors, factor)
        return
    for tensor in tensors:
        tensor.mul_(factor)


def _is_hooked(step: Any) -> bool:
    return getattr(step, "hooked", False)
