"""Runs on several devices: a process for each, which train as one and give one result."""

import os
import signal
import time
from concurrent import futures
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from lightning_znorm import ZNorm
from lightning_znorm.compare import compare
from lightning_znorm.compare.runs import checkpoint
from lightning_znorm.compare.runs.checkpoint import find_checkpoint
from tests.compare.helpers import ALONE, QUICK, TINY, read_results
from tests.compare.helpers import compare as command
from tests.compare.ranks import ASKED, TWO, Telling, assert_gone, make_task, start, train
from tests.compare.tiny import TinyData, TinyModel
from tests.helpers import PACKAGES
from tests.sharded.fitting import fsdp, model_parallel


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
