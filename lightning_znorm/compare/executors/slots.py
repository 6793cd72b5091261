"""Slots for runs side by side, each with its GPUs or none."""

import os

import torch

from lightning_znorm.errors import ArgumentValueError, require_count


def make_slots(jobs: int | None, accelerator: str = "auto", devices: int = 1) -> list[dict[str, str]]:
    """Return the environment of each slot, with the visible GPUs spread over them; ``"cpu"`` uses none.

    Args:
        jobs: Number of slots, ``None`` for as many as there are GPUs or cores for.
        accelerator: Argument of the Trainer.
        devices: Number of devices of each slot.

    Raises:
        ArgumentValueError: If a slot needs more GPUs than there are.

    """
    gpus = [] if accelerator == "cpu" else find_visible_gpus()
    if 0 < len(gpus) < devices:
        raise ArgumentValueError(
            f"The Trainer's arguments ask for {devices} devices for each run (`trainer.devices`), but only {len(gpus)}"
            " of the GPUs can be seen. Ask for fewer, or let CUDA_VISIBLE_DEVICES name more."
        )
    groups = [",".join(gpus[first : first + devices]) for first in range(0, len(gpus) - devices + 1, devices)]
    default = len(groups) or max(1, count_cores() // (2 * devices))
    number = default if jobs is None else require_count("jobs", jobs, least=1)
    return [{"CUDA_VISIBLE_DEVICES": groups[job % len(groups)]} if groups else {} for job in range(number)]


def find_visible_gpus() -> list[str]:
    """Return the name of each visible GPU for ``CUDA_VISIBLE_DEVICES``, without starting CUDA."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    number = torch.cuda.device_count()
    names = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (names or [str(gpu) for gpu in range(number)])[:number]


def count_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
