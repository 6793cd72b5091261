"""Runs on several devices: a process for each, which train as one and give one result."""

import os
import signal
import time
from concurrent import futures
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from lightning_znorm import ZNorm
from lightning_znorm.compare import compare
from lightning_znorm.compare.executors import processes, run_process
from lightning_znorm.compare.executors import slots as places
from lightning_znorm.compare.executors.processes import ProcessExecutor
from lightning_znorm.compare.question.methods import Method
from lightning_znorm.compare.question.run import Run, Setting
from lightning_znorm.compare.runs import checkpoint
from lightning_znorm.compare.runs.checkpoint import find_checkpoint
from lightning_znorm.compare.runs.devices import check_devices, count_devices, count_processes, make_rank_environment
from lightning_znorm.compare.runs.perform import Task
from lightning_znorm.compare.runs.recipes import FactoryRecipe
from lightning_znorm.errors import ComparisonError
from tests.compare.helpers import ALONE, TINY, read_results
from tests.compare.helpers import compare as command
from tests.compare.tiny import TinyData, TinyModel
from tests.helpers import PACKAGES
from tests.sharded.trainers import fsdp, model_parallel

ASKED = {"methods": "none", "sweep": None, "confirm": 1, "monitor": "val_acc", "out": "out", "jobs": 1}
QUICK = {"max_epochs": 2, "accelerator": "cpu"}
TWO = {**QUICK, "devices": 2}


class Telling(TinyModel):
    """Returns what rank 1 alone knows, and learns from its part of each batch."""

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        return {"rank": torch.tensor(float(self.trainer.global_rank)), "samples": torch.tensor(float(len(batch[1])))}

    def test_step(self, batch, batch_idx):
        super().test_step(batch, batch_idx)
        return {"rank": torch.tensor(float(self.trainer.global_rank))}

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * 0 + self.trainer.global_rank


def make_task(model, trainer, folder="runs/0", resumes=False):
    folder = Path(folder).absolute()
    return Task(
        Run(Method("none"), Setting(), 0),
        FactoryRecipe(model, TinyData, trainer),
        folder,
        checkpoint=find_checkpoint(folder) if resumes else None,
    )


def start(*tasks):
    return ProcessExecutor([{}], processes=count_processes(tasks[0].recipe.trainer)).execute(tasks)


def train(model, trainer, **options):
    """The result of a run."""
    (result,) = [event.result for event in start(make_task(model, trainer, **options)) if event.result is not None]
    return result


@pytest.mark.slow
def test_ddp():
    frame = compare(Telling, TinyData, trainer=TWO, **ASKED)
    assert frame["runs"].tolist() == [1]
    (result,) = read_results("out").values()
    assert result["device"] == "2 x cpu"
    assert (result["steps"], result["epochs"]) == (2 * 3, 2.0)  # 200 samples in batches of 40 on each
    assert [row["metrics"]["validation_step.rank"] for row in result["curve"]] == [0.5, 0.5]
    assert [row["metrics"]["validation_step.samples"] for row in result["curve"]] == [30.0, 30.0]
    assert result["test"]["test_step.rank"] == 0.5
    assert result["train_loss"] == [0.5, 0.5]
    (folder,) = Path("out/runs").iterdir()
    assert {path.name for path in folder.iterdir()} >= {"log.txt", "log-rank-1.txt", "result.json"}


class Failing(TinyModel):
    """Does something on one rank in the second epoch, for which others wait."""

    act, rank = "raise", 1

    def training_step(self, batch, batch_idx):
        if self.current_epoch == 1 and self.rank in (self.trainer.global_rank, None):
            print("last words of", self.trainer.global_rank, flush=True)
            if self.act == "raise":
                raise RuntimeError("out of luck")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().training_step(batch, batch_idx)


class Killed(Failing):
    act = "kill"


class KilledFirst(Failing):
    act, rank = "kill", 0


class AllFailing(Failing):
    rank = None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "expected", "log"),
    [
        (Failing, "Rank 1: RuntimeError: out of luck", ""),
        (AllFailing, "RuntimeError: out of luck", ""),
        (Killed, "Rank 1: The process ended by signal 9, without a result.", "last words of 1"),
        (KilledFirst, "The process ended by signal 9, without a result.", "last words of 0"),
    ],
    ids=["raises", "all raise", "killed", "rank 0 is killed"],
)
def test_a_rank_that_fails(model, expected, log):
    began = time.monotonic()
    result = train(model, TWO)
    assert result.status == "crashed"
    assert result.error.startswith(expected)
    assert log in result.error
    assert time.monotonic() - began < run_process._GRACE_SECONDS + 20
    assert not Path("runs/0/result.json").exists(), "it is the comparison that writes the error of the first rank"


@pytest.mark.slow
def test_a_rank_that_fails_in_a_trial():
    message = r"(?s)The trial of method `none` failed: Rank 1: RuntimeError: out of luck\n.*raise RuntimeError"
    with pytest.raises(ComparisonError, match=message):
        compare(Failing, TinyData, trainer=TWO, **ASKED)


class FailingLater(Failing):
    """Not in the trial."""

    def training_step(self, batch, batch_idx):
        return TinyModel.training_step(self, batch, batch_idx) if batch_idx < 2 else super().training_step(batch, 2)


@pytest.mark.long
def test_a_rank_that_fails_in_a_comparison():
    frame = compare(FailingLater, TinyData, trainer=TWO, **ASKED)
    assert frame["crashed"].tolist() == [1]
    (result,) = read_results("out").values()
    assert (result["status"], result["error"]) == ("crashed", "Rank 1: RuntimeError: out of luck")


class Waiting(TinyModel):
    """Rank 1 fails, for which rank 0 would wait for ever."""

    def training_step(self, batch, batch_idx):
        Path(f"pid{self.trainer.global_rank}").write_text(str(os.getpid()))
        if self.trainer.global_rank == 1:
            raise RuntimeError("out of luck")
        signal.pause()


def assert_gone():
    found = [int(path.read_text()) for path in Path().glob("pid*")]
    assert len(found) == 2
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in found if psutil.pid_exists(pid)], timeout=60)
    assert not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
def test_a_rank_that_waits_for_one_that_has_failed_is_killed(monkeypatch):
    monkeypatch.setattr(run_process, "_GRACE_SECONDS", 1.0)
    result = train(Waiting, TWO)
    assert (result.status, result.error, result.rank) == ("crashed", "Rank 1: RuntimeError: out of luck", 1)
    assert_gone()
    assert not Path("runs/0/result.json").exists()


class Resumable(TinyModel):
    """Saves a checkpoint at the start of each epoch, and waits in the third, unless undisturbed."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.3), nn.Tanh(), nn.Linear(16, 2))

    def on_fit_start(self):
        checkpoint._MIN_SECONDS = checkpoint._MIN_RATIO = 0.0

    def training_step(self, batch, batch_idx):
        torch.rand(1 + self.trainer.global_rank)  # each rank has its own random numbers
        if (self.current_epoch, batch_idx) == (2, 1) and "UNDISTURBED" not in os.environ:
            Path(f"pid{self.trainer.global_rank}").write_text(str(os.getpid()))
            signal.pause()
        return super().training_step(batch, batch_idx)


def interrupt(task):
    """End a run as soon as both of its ranks wait."""
    events = start(task)
    next(events)
    while [path.stat().st_size > 0 for path in Path().glob("pid*")] != [True, True]:
        time.sleep(0.05)
    events.close()
    assert_gone()
    for path in Path().glob("pid*"):
        path.unlink()


@pytest.mark.slow
def test_an_interrupted_run_goes_on_with_the_same_digits(monkeypatch):
    arguments = {**TWO, "max_epochs": 4}
    for _ in range(2):  # the second time before it has saved anything new
        interrupt(make_task(Resumable, arguments, resumes=True))
        assert find_checkpoint(Path("runs/0")).is_file()
    monkeypatch.setenv("UNDISTURBED", "1")
    resumed = train(Resumable, arguments, resumes=True)
    whole = train(Resumable, arguments, resumes=True, folder="runs/1")
    assert (resumed.status, resumed.resumed, whole.resumed) == ("finished", 1, 0), resumed.error
    for name in ("curve", "train_loss", "test", "steps", "weights_hash", "batches_hash", "epoch_hashes"):
        assert getattr(resumed, name) == getattr(whole, name), name
    assert not list(Path("runs").rglob("*.ckpt"))


class Diverging(TinyModel):
    """The weights of rank 1 alone become NaN."""

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if self.trainer.global_rank == 1 and self.trainer.is_last_batch:
            with torch.no_grad():
                for parameter in self.parameters():
                    (parameter.to_local() if hasattr(parameter, "to_local") else parameter).fill_(float("nan"))


@pytest.mark.slow
def test_ranks_diverge_together():
    result = train(Diverging, TWO)
    assert (result.status, result.ended, result.epochs) == ("diverged", "divergence", 1.0), result.error


class Sharded(Telling):
    def configure_model(self):
        if not hasattr(self.network[0].weight, "to_local"):
            for layer in (self.network[0], self.network[2]):
                fully_shard(layer, mesh=self.device_mesh["data_parallel"])
            fully_shard(self.network, mesh=self.device_mesh["data_parallel"])


class ShardedAndDiverging(Sharded, Diverging):
    pass


@pytest.mark.slow
def test_fsdp2():
    arguments = {**TWO, "strategy": model_parallel(PACKAGES[0], 2, 1)}
    result = train(Sharded, arguments, resumes=True)
    assert (result.status, result.steps, result.device) == ("finished", 6, "2 x cpu"), result.error
    assert result.test["test_step.rank"] == 0.5
    assert len(result.weights_hash) == 64
    assert train(ShardedAndDiverging, arguments).status == "diverged"


@pytest.mark.long
def test_checkpoints_of_fsdp2_are_not_saved():
    class Model(Sharded, Resumable):
        pass

    arguments = {**TWO, "max_epochs": 4, "strategy": model_parallel(PACKAGES[0], 2, 1)}
    interrupt(make_task(Model, arguments, resumes=True))
    assert not list(Path("runs").rglob("*.ckpt"))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_fsdp():
    result = train(Telling, {**TWO, "strategy": fsdp(PACKAGES[0], auto_wrap_policy={nn.Linear})})
    assert (result.status, result.steps) == ("finished", 6), result.error
    assert len(result.weights_hash) == 64


@pytest.mark.slow
@pytest.mark.parametrize(
    "variables",
    [
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "2", "SLURM_JOB_NAME": "train"},
        {"TORCHELASTIC_RUN_ID": "x", "RANK": "2", "LOCAL_RANK": "2", "WORLD_SIZE": "4", "GROUP_RANK": "1"},
    ],
    ids=["slurm", "torchrun"],
)
@pytest.mark.parametrize("arguments", [QUICK, TWO], ids=["one device", "two devices"])
def test_the_variables_of_a_job_are_not_those_of_a_run(monkeypatch, variables, arguments):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    result = train(TinyModel, arguments)
    assert result.status == "finished", result.error
    assert Path("runs/0/metrics.csv").is_file()


@pytest.mark.slow
def test_a_strategy_on_one_device():
    result = train(TinyModel, {**QUICK, "devices": "1", "strategy": "ddp"})
    assert (result.status, result.steps, result.device) == ("finished", 10, "cpu"), result.error


@pytest.mark.long
def test_the_command():
    flags = ["--trainer.devices=2", "--trainer.strategy=ddp", "--compare.jobs=1", "--compare.methods=znorm"]
    assert command(*ALONE, *flags, f"--model={TINY}.TinyModel") == 0
    (result,) = read_results("out").values()
    assert (result["status"], result["steps"], result["device"]) == ("finished", 6, "2 x cpu")
    assert "device: 2 x cpu" in Path("out/summary.md").read_text()


@pytest.mark.long
def test_on_an_engine():
    with futures.ThreadPoolExecutor(1) as engine:
        compare(Telling, TinyData, trainer=TWO, executor=engine, **{**ASKED, "methods": {"znorm": ZNorm()}})
    (result,) = read_results("out").values()
    assert (result["status"], result["device"], result["train_loss"]) == ("finished", "2 x cpu", [0.5, 0.5])


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
