"""Every private attribute of PyTorch that this package reads, and a substitute for versions that lack it."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler, grad_scaler
from torch.optim import Optimizer
from torch.optim import optimizer as _optimizer_module

COMPILED_PREFIX = "_orig_mod."  # of parameter names in a module that `torch.compile` returns
# of parameter names in wrapped modules
WRAPPER_PREFIXES = (COMPILED_PREFIX, "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")

_FLAT_TABLES = ("_params", "_shapes", "_strides", "_shard_param_infos", "_param_extensions")
_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")


def is_unscaled(scaler: GradScaler, optimizer: Optimizer) -> bool | None:
    """Return whether a GradScaler has unscaled the optimizer's gradients, ``None`` if unknown."""
    states, stages = getattr(scaler, "_per_optimizer_states", None), getattr(grad_scaler, "OptState", None)
    if states is None or stages is None:
        return None
    state = states.get(id(optimizer))
    return state is not None and state["stage"] is not stages.READY


def scale_of(scaler: GradScaler) -> Tensor | None:
    """Return the scale of a GradScaler, if possible without waiting for the device."""
    get_scale = getattr(scaler, "_get_scale_async", None)
    return torch.tensor(scaler.get_scale(), device="cpu") if get_scale is None else get_scale()


def unscales_in_step(optimizer: Optimizer) -> bool | None:
    """Return whether the optimizer divides gradients by a GradScaler's scale in its step, ``None`` if unknown."""
    unscales = getattr(optimizer, "_step_supports_amp_scaling", None)
    if unscales is None:
        return None if any(group.get("fused") for group in optimizer.param_groups) else False
    return bool(unscales)


def find_timeout(process_group: Any, device: torch.device) -> timedelta | None:
    """Return how long the ranks of a process group wait for each other, ``None`` if unknown."""
    get_backend = getattr(process_group, "_get_backend", None)
    options = None if get_backend is None else getattr(get_backend(device), "options", None)
    timeout: timedelta | None = getattr(options, "_timeout", None)
    return timeout


def is_flattened(parameter: Tensor) -> bool:
    """Return whether the parameter is part of a flat parameter of FullyShardedDataParallel."""
    return "_fsdp_flattened" in vars(parameter)


@dataclass(frozen=True)
class FlatShard:
    """A rank's shard of the flat parameter of a FullyShardedDataParallel module.

    Attributes:
        process_group: The ranks that hold the shards.
        copies: Number of ranks that hold each shard.
        device: Device of this rank, on which it communicates.
        size: Number of elements of every shard; 0 if every rank holds the whole.
        parts: For each parameter in it: the parameter, the shape of the whole, the position of its first element on
            this rank in the flattened whole, the number of its elements there, and their position in the shard.

    """

    process_group: Any
    copies: int
    device: torch.device
    size: int
    parts: list[tuple[Tensor, torch.Size, int, int, int]]


def find_flat_shard(module: Any) -> FlatShard | None:
    """Return the shard of a FullyShardedDataParallel module with ``use_orig_params=True``, ``None`` if unknown.

    Left out are parameters whose rows do not follow each other in memory, and parts of DTensors.
    """
    flat: Any = getattr(module, "_flat_param", None)
    tables = [getattr(flat, name, None) for name in _FLAT_TABLES]
    if any(table is None for table in tables):
        return None
    parts = []
    for parameter, shape, strides, info, extension in zip(*tables, strict=True):
        has_rows = len(shape) < 2 or strides[0] == shape[1:].numel()
        if has_rows and extension is None:
            position = (info.intra_param_start_idx, info.numel_in_shard, info.offset_in_shard)
            parts.append((parameter, shape, *(position if info.in_shard else (0, 0, 0))))
    replicas = getattr(module, "_inter_node_pg", None)
    is_sharded = module.sharding_strategy.name != "NO_SHARD"
    return FlatShard(
        module.process_group,
        1 if replicas is None else replicas.size(),
        module.compute_device,
        flat._sharded_size.numel() if is_sharded else 0,
        parts,
    )


def unwrap_compiled_module(module: nn.Module) -> nn.Module | None:
    """Return the module inside the wrapper of ``torch.compile``, ``None`` for any other module."""
    return module._modules.get(COMPILED_PREFIX.rstrip("."))


def version_of(tensor: Tensor | None) -> int | None:
    """Return how often a tensor was edited in place, ``None`` if unknown."""
    return getattr(tensor, "_version", None)


def make_hookable(optimizer: Optimizer) -> bool:
    """Make PyTorch call the step hooks of an optimizer, and return whether it will.

    PyTorch prepares classes that do not call ``Optimizer.__init__`` for hooks only at their first ``zero_grad()``. A
    step that a learning-rate scheduler wrapped before that never calls hooks.
    """
    if not all(hasattr(optimizer, name) for name in _HOOKS):
        return False
    if "step" not in vars(optimizer) and not _is_hooked(type(optimizer).step):
        prepare = getattr(optimizer, "_patch_step_function", None)
        if prepare is not None:
            prepare()
    return _is_hooked(getattr(vars(optimizer).get("step"), "__wrapped__", type(optimizer).step))


def calls_hooks_of_parents(optimizer: Optimizer) -> bool:
    """Return whether PyTorch may call the step hooks again for a ``super().step()`` inside the step."""
    return sum(_is_hooked(vars(cls).get("step")) for cls in type(optimizer).__mro__) > 1


def count_step_calls(optimizer: Optimizer) -> int:
    """Return how many calls of the optimizer's ``step``, in PyTorch's wrapper for hooks, are on the stack."""
    calls = 0
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_name == "wrapper" and code.co_filename == _optimizer_module.__file__:
            calls += frame.f_locals.get("self") is optimizer
        frame = frame.f_back
    return calls


def copy_all_(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy tensors into others, in one call if PyTorch has one."""
    copy_ = getattr(torch, "_foreach_copy_", None)
    if copy_ is not None:
        copy_(targets, sources)
        return
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


def norm_all(tensors: Sequence[Tensor], norm_type: float, dtype: torch.dtype) -> Sequence[Tensor]:
    """Return the norm of each tensor, computed in a dtype, in one call if PyTorch has one."""
    norm = getattr(torch, "_foreach_norm", None)
    if norm is not None:
        norms: Sequence[Tensor] = norm(tensors, norm_type, dtype)
        return norms
    return [torch.linalg.vector_norm(tensor, norm_type, dtype=dtype) for tensor in tensors]


def multiply_all_(tensors: Sequence[Tensor], factor: Tensor) -> None:
    """Multiply tensors by a tensor of no dimensions, in one call if PyTorch has one."""
    multiply_ = getattr(torch, "_foreach_mul_", None)
    if multiply_ is not None:
        multiply_(tensors, factor)
        return
    for tensor in tensors:
        tensor.mul_(factor)


def _is_hooked(step: Any) -> bool:
    return getattr(step, "hooked", False)
