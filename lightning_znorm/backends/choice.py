"""Which backend transforms the gradients of a device: the fastest one that has been checked there."""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module

import torch
from torch import Tensor

from lightning_znorm.backends import clipping, cpu, cpu_centralize, cpu_clipping, generic
from lightning_znorm.backends.checking import REFERENCE, find_fault
from lightning_znorm.backends.interface import Backend
from lightning_znorm.errors import ArgumentValueError, describe

VARIABLE = "LIGHTNING_ZNORM_BACKEND"
_LOWEST_CAPABILITY = (7, 0)  # of NVIDIA GPUs, for Triton

CPU = Backend(
    "cpu",
    cpu.measure,
    cpu.apply_,
    cpu.znorm_,
    cpu_centralize.centralize_,
    cpu_clipping.norm,
    cpu_clipping.scale_,
)
GENERIC = Backend(
    "generic",
    generic.measure,
    generic.apply_,
    generic.znorm_,
    generic.centralize_,
    clipping.norm,
    clipping.scale_,
)


def choose(gradients: Sequence[Tensor]) -> Backend:
    """Return the backend for gradients on one device.

    The CPU has one of its own. CUDA devices, those of ROCm included, take ``triton`` where a few small gradients of the
    same dtype have come out right, once per process, device and dtype; otherwise, and on all other devices, it is
    ``generic``. The environment variable ``LIGHTNING_ZNORM_BACKEND`` names one for all devices, without a check.

    Raises:
        ArgumentValueError: If the environment variable names no backend.

    """
    forced = os.environ.get(VARIABLE)
    if forced:
        return get_backend(forced)
    device = gradients[0].device
    if _has_own_backend(device):
        return CPU
    if not may_use_triton(device):
        return GENERIC
    dtypes = {gradient.dtype for gradient in gradients} - {torch.float64}  # which both leave to the reference
    is_checked = dtypes and all(find_obstacle(device, dtype) is None for dtype in dtypes)
    return load_triton() if is_checked else GENERIC


def get_backend(name: str) -> Backend:
    """Return the backend that the environment variable names."""
    named: dict[str, Callable[[], Backend]] = {
        "generic": lambda: GENERIC,
        "reference": lambda: REFERENCE,
        "triton": load_triton,
    }
    if name not in named:
        raise ArgumentValueError(
            f"Expected the environment variable `{VARIABLE}` to be one of {', '.join(map(repr, named))}, but got"
            f" {describe(name)}. Without it, each device gets the fastest backend that works."
        )
    return named[name]()


def may_use_triton(device: torch.device) -> bool:
    """Return whether the kernels are made for this kind of device."""
    return device.type == "cuda"


@lru_cache(maxsize=1)
def load_triton() -> Backend:
    """Import the backend that needs Triton."""
    triton = import_module("lightning_znorm.backends.triton")
    return Backend(
        "triton",
        triton.measure,
        triton.apply_,
        triton.znorm_,
        triton.centralize_,
        clipping.norm,
        clipping.scale_,
    )


def is_capturing() -> bool:
    """Return whether a CUDA graph captures the current stream."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


_obstacles: dict[tuple[torch.device, torch.dtype], str | None] = {}


def find_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why Triton is not used for gradients of a device and dtype, ``None`` if it is.

    The first call per process checks it, which waits for the device, and warns if it fails. While a CUDA graph is
    captured, nothing can be checked.
    """
    if (device, dtype) not in _obstacles:
        if is_capturing():
            return "its first use is inside a CUDA graph"
        try:
            obstacle = _check_triton(device, dtype)
        except torch.OutOfMemoryError:  # there may be room for the next step
            return "there is no memory to check it"
        _obstacles[device, dtype] = obstacle
        if obstacle is not None:
            _warn(f"on {device} for {dtype}", obstacle)
    return _obstacles[device, dtype]


def agree(parameters: Iterable[Tensor], reduce_min: Callable[[int], int]) -> None:
    """Take Triton on all ranks or on none, so that their gradients get the same bits.

    A rank on which the environment variable forces a backend agrees to anything, and is not changed.

    Args:
        parameters: Those whose gradients will be transformed; at least one is on a device that may use Triton.
        reduce_min: Returns the minimum of an integer over all ranks, which must call this together.

    """
    kinds = {(parameter.device, parameter.dtype) for parameter in parameters if may_use_triton(parameter.device)}
    kinds = {(device, dtype) for device, dtype in kinds if dtype != torch.float64}
    is_forced = bool(os.environ.get(VARIABLE))
    found = {} if is_forced else {kind: find_obstacle(*kind) for kind in kinds}
    works = not any(found.values())
    if reduce_min(int(works)) or is_forced:
        return
    for kind, obstacle in found.items():
        _obstacles[kind] = obstacle or "it does not work on another rank"
    if works:
        _warn("on this rank", "it does not work on another one, and all ranks must compute the same")


def _check_triton(device: torch.device, dtype: torch.dtype) -> str | None:
    capability = _capability_of(device)
    if capability is not None and capability < _LOWEST_CAPABILITY:
        return f"it needs compute capability 7.0, the device has {'.'.join(map(str, capability))}"
    if device.type == "cuda" and os.environ.get("TRITON_INTERPRET") == "1":
        return "its interpreter, which `TRITON_INTERPRET=1` asks for, cannot read the memory of a GPU"
    try:
        with _waiting_is_allowed(device):
            return find_fault(load_triton(), device, dtype)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of an import, a compiler, a driver, a cache folder: of many types
        lines = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {lines[-1][:200]}"


@contextmanager
def _waiting_is_allowed(device: torch.device) -> Iterator[None]:
    """Let the check wait for the device, also where a user has made that an error to find such places."""
    if device.type != "cuda":
        yield
        return
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(0)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def _capability_of(device: torch.device) -> tuple[int, int] | None:
    """Return the compute capability of an NVIDIA GPU."""
    if device.type != "cuda" or torch.version.hip is not None:
        return None
    return torch.cuda.get_device_capability(device)


def _has_own_backend(device: torch.device) -> bool:
    return device.type == "cpu"


def _warn(where: str, why: str) -> None:
    warnings.warn(
        f"Triton is not used {where}: {why}. Plain PyTorch operations transform the gradients, right but more slowly."
        " Triton needs a driver, a C compiler, the headers of Python (`python3-dev`) and a cache folder that it may"
        " write to (`TRITON_CACHE_DIR`); `lightning-znorm doctor` tries again.",
        UserWarning,
        stacklevel=2,
    )
