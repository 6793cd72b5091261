"""The devices of a run: how many, and the environment of the process of each."""

import re
from collections.abc import Mapping
from typing import Any

from lightning_znorm._lightning import find_classes, get_start_method
from lightning_znorm.errors import ArgumentValueError

# variables by which Lightning takes a process for a rank of a job
_OF_LAUNCHERS = (
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID"),
    *("SLURM_NTASKS", "JSM_NAMESPACE_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"),
)
_OWN_STARTERS = ("spawn", "fork", "notebook")  # in names of strategies


def count_devices(trainer: Mapping[str, Any]) -> int:
    """Return the number of devices of each run, given arguments that :func:`check_devices` accepts."""
    devices = trainer.get("devices")
    return 1 if devices in (None, "auto") else int(devices)


def count_processes(trainer: Mapping[str, Any]) -> int | None:
    """Return the number of processes that a run's strategy connects, ``None`` for a single one without a strategy."""
    devices = count_devices(trainer)
    return None if devices == 1 and trainer.get("strategy") in (None, "auto") else devices


def make_rank_environment(
    rank: int, processes: int | None, port: int | None, environment: Mapping[str, str]
) -> dict[str, str]:
    """Return the variables of ``torchrun`` with which Lightning starts no processes by itself.

    Args:
        rank: Rank of the process.
        processes: Result of :func:`count_processes`.
        port: Port of the ``TCPStore`` of the run's processes, ``None`` if there is none.
        environment: The variables so far. If they are those of a job with several tasks, a run with a single process
            gets the variables, too, as Lightning would take it for one of the tasks.

    Returns:
        The variables, none where none are needed.

    """
    if processes is None and not any(name in environment for name in _OF_LAUNCHERS):
        return {}
    size = str(processes or 1)
    variables = dict.fromkeys(("RANK", "LOCAL_RANK", "ROLE_RANK"), str(rank))
    variables |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE", "ROLE_WORLD_SIZE"), size)
    variables |= {"GROUP_RANK": "0", "GROUP_WORLD_SIZE": "1", "ROLE_NAME": "default"}
    variables |= {"TORCHELASTIC_RUN_ID": "lightning-znorm", "TORCHELASTIC_USE_AGENT_STORE": str(port is not None)}
    variables |= {"TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_MAX_RESTARTS": "0"}
    return variables | ({} if port is None else {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})


def check_devices(trainer: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` if a Trainer's arguments ask for devices that a run cannot have."""
    devices, nodes, strategy = (trainer.get(name) for name in ("devices", "num_nodes", "strategy"))
    is_number = isinstance(devices, int) and not isinstance(devices, bool) and devices > 0
    is_text = isinstance(devices, str) and re.fullmatch(r"0*[1-9]\d*", devices) is not None
    if not (devices in (None, "auto") or is_number or is_text):
        raise ArgumentValueError(
            f"The Trainer's arguments ask for certain devices, or for all (`trainer.devices: {devices}`). Give the"
            " number of devices of each run; CUDA_VISIBLE_DEVICES sets the GPUs that the runs share."
        )
    if nodes not in (None, 1):
        raise ArgumentValueError(
            f"The Trainer's arguments ask for several machines (`trainer.num_nodes: {nodes}`), but each run has one."
            " Remove it; from Python, `executor` distributes runs over machines."
        )
    method = _find_start_method(strategy)
    if any(name in method for name in _OWN_STARTERS):
        raise ArgumentValueError(
            f"The Trainer's strategy starts processes by itself (`trainer.strategy`: {method}), but those of a run are"
            " started by the comparison. Use `ddp`."
        )


def _find_start_method(strategy: Any) -> str:
    """Return the name of a strategy, or how a strategy or its configuration starts processes."""
    if isinstance(strategy, Mapping):
        return str((strategy.get("init_args") or {}).get("start_method", ""))
    if isinstance(strategy, find_classes("strategies", "DDPStrategy")):
        return get_start_method(strategy)
    return strategy if isinstance(strategy, str) else ""
