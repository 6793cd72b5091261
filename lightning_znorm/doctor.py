"""The command ``lightning-znorm doctor``: which backend transforms the gradients of each device, and is it right?"""

import os
import platform
import warnings
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import torch

from lightning_znorm import __version__
from lightning_znorm.backends._memory import widest_dtype
from lightning_znorm.backends.checking import find_fault
from lightning_znorm.backends.choice import VARIABLE, choose, find_obstacle, may_use_triton
from lightning_znorm.backends.interface import Backend

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_PACKAGES = ("lightning", "pytorch-lightning", "triton")


def examine() -> int:
    """Print devices, versions, the backend of each device and the result of its check.

    Returns:
        The exit status of the command: 1 if a gradient would be wrong, else 0.

    Example::

        >>> examine()  # doctest: +ELLIPSIS
        lightning-znorm ...
        cpu: ...
        ...
        Every gradient is right.
        0

    """
    print(f"lightning-znorm {__version__}, torch {torch.__version__}, Python {platform.python_version()}", end="")
    print("".join(f", {name} {found}" for name in _PACKAGES if (found := _version_of(name))))
    if os.environ.get(VARIABLE):
        print(f"{VARIABLE}={os.environ[VARIABLE]}: for all devices, and without a fallback")
    faults = 0
    for device in _list_devices():
        print(f"{device}: {_describe(device)}")
        for dtype in _DTYPES:
            if dtype == torch.float64 and widest_dtype(device) != torch.float64:
                continue
            backend, note = _choose(device, dtype)
            fault = _find_fault(backend, device, dtype)
            faults += fault is not None
            name = str(dtype).removeprefix("torch.")
            print(f"  {name:<9} {backend.name:<10} {fault or 'right'}{note}")
    if not faults:
        print("Every gradient is right.")
    elif os.environ.get(VARIABLE):
        print(f"Remove `{VARIABLE}`: without it, each device gets a backend that works there.")
    else:
        print(_REMEDY)
    return int(faults > 0)


_REMEDY = (
    "Gradients marked WRONG would be wrong in a training, and one would stop where it says FAILS."
    f" `{VARIABLE}=reference` is the slow way that is most likely right. Please report this page."
)


def _choose(device: torch.device, dtype: torch.dtype) -> tuple[Backend, str]:
    """Return the backend of a device and dtype, and why it is not a faster one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the line says the same
        backend = choose([torch.ones(2, device=device, dtype=dtype)])
        obstacle = None
        if not os.environ.get(VARIABLE) and may_use_triton(device) and dtype != torch.float64:
            obstacle = find_obstacle(device, dtype)
    return backend, "" if obstacle is None else f" (Triton is not used: {obstacle})"


def _find_fault(backend: Backend, device: torch.device, dtype: torch.dtype) -> str | None:
    try:
        fault = find_fault(backend, device, dtype)
    except Exception as error:  # of any type: a report should not end with it
        return f"FAILS: {type(error).__name__}: {error}"
    return None if fault is None else f"WRONG: {fault}"


def _list_devices() -> Iterator[torch.device]:
    yield torch.device("cpu")
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is not None:
        for index in range(torch.accelerator.device_count()):
            yield torch.device(accelerator.type, index)


def _describe(device: torch.device) -> str:
    if device.type == "cpu":
        return f"{platform.machine()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    if device.type != "cuda":
        return device.type.upper()
    found = torch.cuda.get_device_properties(device)
    runtime = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
    return f"{found.name}, capability {found.major}.{found.minor}, {found.total_memory >> 30} GiB, {runtime}"


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
