"""How many runs go side by side, and which GPU each has."""

import os

import torch

from lightning_znorm.errors import count


def make_slots(jobs: int | None, accelerator: str = "auto") -> list[dict[str, str]]:
    """Spread a number of jobs over the GPUs that are visible.

    Args:
        jobs: Number of runs side by side; by default one per GPU, or one for every two cores where there is none.
        accelerator: The Trainer's; ``"cpu"`` leaves GPUs alone.

    Returns:
        The environment of each job. With more jobs than GPUs, several share one.

    Raises:
        ValueError: If ``jobs`` is less than 1.

    """
    gpus = [] if accelerator == "cpu" else find_visible_gpus()
    number = (len(gpus) or max(1, count_cores() // 2)) if jobs is None else count("jobs", jobs, least=1)
    return [{"CUDA_VISIBLE_DEVICES": gpus[job % len(gpus)]} if gpus else {} for job in range(number)]


def find_visible_gpus() -> list[str]:
    """Return how ``CUDA_VISIBLE_DEVICES`` would name each visible GPU, without starting CUDA."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    number = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (named or [str(gpu) for gpu in range(number)])[:number]


def count_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
