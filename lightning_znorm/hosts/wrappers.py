"""Wrappers of Lightning, Fabric, accelerate and PyTorch around optimizers and modules."""

from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lightning_znorm._lightning import MisconfigurationError, unwrap_fabric_module, unwrap_optimizer
from lightning_znorm._torch import unwrap_compiled_module
from lightning_znorm.hosts.support import refuse_unsupported

# by name, so that accelerate is not imported
_ACCELERATED = "accelerate.optimizer.AcceleratedOptimizer"


def find_optimizer(optimizer: Any, owner: str, enabled: bool) -> Any:
    """Return the optimizer inside the wrappers of Lightning, Fabric and accelerate.

    If the transform is enabled, raise for an unsupported strategy or precision.
    """
    wrapped = unwrap_optimizer(optimizer)
    if wrapped is not None:
        inner, strategy = wrapped
        if enabled and strategy is not None:
            precision = getattr(strategy, "precision", None) or strategy.precision_plugin
            refuse_unsupported(owner, strategy, precision, in_trainer=hasattr(strategy, "precision_plugin"))
        return find_optimizer(inner, owner, enabled)
    if _ACCELERATED in {f"{cls.__module__}.{cls.__qualname__}" for cls in type(optimizer).__mro__}:
        if enabled:
            _refuse_accelerate(owner, optimizer.accelerator_state)
        return find_optimizer(optimizer.optimizer, owner, enabled)
    return optimizer


def find_module(module: nn.Module) -> nn.Module:
    """Return the module inside the wrappers of torch.compile, Fabric and data parallelism, which prefix its names."""
    inner = unwrap_fabric_module(module)
    if inner is None and isinstance(module, (DistributedDataParallel, nn.DataParallel)):
        inner = module.module
    if inner is None:
        inner = unwrap_compiled_module(module)
    return module if inner is None else find_module(inner)


def _refuse_accelerate(owner: str, state: Any) -> None:
    """Raise if accelerate's parallelism or precision is not supported."""
    kind = state.distributed_type.value
    if kind != "NO" and not kind.startswith("MULTI_"):  # data parallelism is MULTI_GPU, MULTI_CPU, …
        raise MisconfigurationError(
            f"`{owner}` does not support accelerate's `DistributedType.{kind}` yet: it may shard gradients"
            " or store them elsewhere. Use one device or data parallelism (DDP), or leave the transform out"
            " (`enabled=False`)."
        )
    if state.mixed_precision not in ("no", "fp16", "bf16"):
        raise MisconfigurationError(
            f"`{owner}` does not support accelerate's `mixed_precision={state.mixed_precision!r}` yet. Use 'no', 'fp16'"
            " or 'bf16', or leave the transform out (`enabled=False`)."
        )
