"""Which devices a run may ask for, and how those of a machine are dealt out."""

import pytest

from lightning_znorm.compare.executors import processes
from lightning_znorm.compare.executors import slots as places
from lightning_znorm.compare.executors.processes import ProcessExecutor
from lightning_znorm.compare.runs.devices import check_devices, count_devices, count_processes, make_rank_environment
from tests.helpers import PACKAGES


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"devices": [0, 1]}, r"ask for certain devices, or for all \(`trainer.devices: \[0, 1\]`\). Give the number"),
        ({"devices": "0,1"}, "ask for certain devices"),
        ({"devices": -1}, "ask for certain devices"),
        ({"devices": "-1"}, "ask for certain devices"),
        ({"devices": 0}, "ask for certain devices"),
        ({"devices": True}, "ask for certain devices"),
        ({"num_nodes": 2}, r"several machines \(`trainer.num_nodes: 2`\), but each run has one"),
        ({"strategy": "ddp_spawn"}, r"starts processes by itself \(`trainer.strategy`: ddp_spawn\).* Use `ddp`"),
        ({"strategy": "ddp_notebook_find_unused_parameters_true"}, "starts processes by itself"),
        ({"strategy": {"class_path": "DDPStrategy", "init_args": {"start_method": "fork"}}}, r"strategy`: fork\)"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        check_devices(arguments)


@pytest.mark.parametrize("package", PACKAGES)
def test_strategies_that_start_processes_are_refused(package):
    strategies = pytest.importorskip(f"{package}.strategies")
    check_devices({"devices": 2, "strategy": strategies.DDPStrategy()})
    with pytest.raises(ValueError, match=r"starts processes by itself \(`trainer.strategy`: spawn\)"):
        check_devices({"devices": 2, "strategy": strategies.DDPStrategy(start_method="spawn")})


@pytest.mark.parametrize(
    ("arguments", "devices", "count"),
    [
        ({}, 1, None),
        ({"devices": "auto", "strategy": "auto"}, 1, None),
        ({"devices": "1"}, 1, None),
        ({"devices": 1, "strategy": "ddp"}, 1, 1),
        ({"devices": "4"}, 4, 4),
        ({"devices": 2, "strategy": {"class_path": "ModelParallelStrategy"}}, 2, 2),
    ],
)
def test_numbers_of_devices_and_processes(arguments, devices, count):
    check_devices(arguments)
    assert count_devices(arguments) == devices
    assert count_processes(arguments) == count


def test_the_environment_of_a_rank():
    assert make_rank_environment(0, None, None, {"SLURM_JOB_ID": "7"}) == {}
    alone = make_rank_environment(0, None, None, {"SLURM_NTASKS": "4"})
    assert (alone["WORLD_SIZE"], alone["TORCHELASTIC_USE_AGENT_STORE"]) == ("1", "False")
    assert "MASTER_PORT" not in alone
    rank = make_rank_environment(1, 2, 2345, {})
    assert {rank[name] for name in ("RANK", "LOCAL_RANK", "ROLE_RANK")} == {"1"}
    assert (rank["WORLD_SIZE"], rank["LOCAL_WORLD_SIZE"], rank["GROUP_RANK"]) == ("2", "2", "0")
    assert (rank["MASTER_ADDR"], rank["MASTER_PORT"]) == ("127.0.0.1", "2345")
    assert rank["TORCHELASTIC_USE_AGENT_STORE"] == "True"


@pytest.mark.parametrize(
    ("jobs", "gpus", "accelerator", "devices", "expected", "threads"),
    [
        (None, 4, "auto", 2, ["0,1", "2,3"], 3),
        (None, 5, "gpu", 2, ["0,1", "2,3"], 3),
        (3, 4, "gpu", 2, ["0,1", "2,3", "0,1"], 2),
        (None, 4, "auto", 4, ["0,1,2,3"], 3),
        (None, 4, "cpu", 2, [None] * 3, 2),
        (None, 0, "auto", 8, [None], 1),
    ],
)
def test_gpus_are_dealt_out(monkeypatch, jobs, gpus, accelerator, devices, expected, threads):
    monkeypatch.setattr(places, "find_visible_gpus", lambda: [str(number) for number in range(gpus)])
    for module in (places, processes):
        monkeypatch.setattr(module, "count_cores", lambda: 12)
    slots = places.make_slots(jobs, accelerator, devices)
    assert [slot.get("CUDA_VISIBLE_DEVICES") for slot in slots] == expected
    assert ProcessExecutor(slots, processes=devices).threads == threads


def test_too_few_gpus(monkeypatch):
    monkeypatch.setattr(places, "find_visible_gpus", lambda: ["0"])
    with pytest.raises(ValueError, match=r"ask for 2 devices for each run \(`trainer.devices`\), but only 1 of the"):
        places.make_slots(None, "auto", 2)
