"""Runs with a process for each of two devices, for the tests of them."""

from pathlib import Path

import psutil
import torch

from lightning_znorm.compare.executors.processes import ProcessExecutor
from lightning_znorm.compare.question.methods import Method
from lightning_znorm.compare.question.run import Run, Setting
from lightning_znorm.compare.runs.checkpoint import find_checkpoint
from lightning_znorm.compare.runs.devices import count_processes
from lightning_znorm.compare.runs.perform import Task
from lightning_znorm.compare.runs.recipes import FactoryRecipe
from tests.compare.helpers import QUICK
from tests.compare.tiny import TinyData, TinyModel

ASKED = {"methods": "none", "sweep": None, "confirm": 1, "monitor": "val_acc", "out": "out", "jobs": 1}
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


def assert_gone():
    found = [int(path.read_text()) for path in Path().glob("pid*")]
    assert len(found) == 2
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in found if psutil.pid_exists(pid)], timeout=60)
    assert not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]
