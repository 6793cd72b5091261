"""Slots for runs side by side, each with a GPU or none."""

import os

import torch

from lightning_znorm.errors import require_count


def make_slots(jobs: int | None, accelerator: str = "auto") -> list[dict[str, str]]:
    """Return the environment of each slot, with the visible GPUs spread over them; ``"cpu"`` uses none."""
    gpus = [] if accelerator == "cpu" else find_visible_gpus()
    number = (len(gpus) or max(1, count_cores() // 2)) if jobs is None else require_count("jobs", jobs, least=1)
    return [{"CUDA_VISIBLE_DEVICES": gpus[job % len(gpus)]} if gpus else {} for job in range(number)]


def find_visible_gpus() -> list[str]:
    """Return the name of each visible GPU for ``CUDA_VISIBLE_DEVICES``, without starting CUDA."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    number = torch.cuda.device_count()
    names = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (names or [str(gpu) for gpu in range(number)])[:number]


def count_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
