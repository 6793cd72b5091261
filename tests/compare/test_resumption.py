"""A run that was interrupted goes on from its checkpoint, as if nothing had happened."""

import os
import signal
from importlib import import_module
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_znorm import ZNorm
from lightning_znorm.compare.runs import checkpoint as checkpoints
from lightning_znorm.compare.runs import result as results
from lightning_znorm.compare.runs.checkpoint import RunCheckpoint, find_checkpoint, prepare_resumption
from lightning_znorm.compare.runs.recorder import Recorder
from tests import warm
from tests.compare.helpers import FLAGS, ODD, ROOT, TWO, figures, read_results
from tests.helpers import PACKAGES

PATH = Path("resume.ckpt")
EPOCHS = 5


class InterruptionError(Exception):
    pass


def make_model(package, scheduler=None, stops=None):
    pl = import_module(package)

    class Model(pl.LightningModule):
        """Dropout, shuffling and a metric of its own in each epoch."""

        def __init__(self):
            super().__init__()
            self.network = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.3), nn.Tanh(), nn.Linear(16, 1))

        def training_step(self, batch, batch_idx):
            if (self.current_epoch, batch_idx) == stops:
                raise InterruptionError
            return self._loss(batch)

        def validation_step(self, batch, batch_idx):
            self.log("val_loss", self._loss(batch))

        def _loss(self, batch):
            return (self.network(batch[0]) - batch[1]).square().mean()

        def configure_optimizers(self):
            optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
            if scheduler is None:
                return optimizer
            schedule = scheduler(optimizer)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "val_loss"}}

    return Model()


def train(package, *, resumes=False, scheduler=None, stops=None, workers=0, stops_early=True, **arguments):
    """Train, perhaps until the interruption, and return the module, its Trainer and its recorder."""
    pl = import_module(package)
    pl.seed_everything(3)
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(20, 4, generator=generator), torch.randn(20, 1, generator=generator))
    loader = DataLoader(data, batch_size=4, shuffle=True, num_workers=workers)
    recorder, model = Recorder(), make_model(package, scheduler, stops)
    stopping = [import_module(f"{package}.callbacks").EarlyStopping("val_loss", patience=9)] * stops_early
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ZNorm(start_step=3), *stopping, recorder, RunCheckpoint(PATH)],
        **{"enable_checkpointing": False, "max_epochs": EPOCHS, **arguments},
    )
    path = {"ckpt_path": PATH, "weights_only": False} if resumes else {}
    try:
        trainer.fit(model, loader, DataLoader(data, batch_size=10), **path)
    except InterruptionError:
        assert not resumes
    return model, trainer, recorder


@pytest.fixture(autouse=True)
def _each_epoch(monkeypatch):
    monkeypatch.setattr(checkpoints, "_MIN_SECONDS", 0.0)
    monkeypatch.setattr(checkpoints, "_MIN_RATIO", 0.0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scheduler": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)},
        {"scheduler": lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=9)},
        {"val_check_interval": 0.4, "accumulate_grad_batches": 3},
        {"max_steps": 23},
        {"max_epochs": -1, "max_steps": 23, "limit_val_batches": 0, "stops_early": False},
        {"max_epochs": -1, "max_steps": 23, "val_check_interval": 7, "check_val_every_n_epoch": None},
        pytest.param({"workers": 1}, marks=pytest.mark.slow),
    ],
    ids=["plain", "step", "plateau", "validations", "steps", "steps alone", "steps across epochs", "workers"],
)
def test_as_if_nothing_had_happened(package, options):
    model, trainer, recorder = train(package, **options)
    PATH.unlink()
    _, _, before = train(package, stops=(3, 2), **options)
    assert len(before.losses) == 3
    resumed_model, resumed_trainer, resumed = train(package, resumes=True, **options)
    for name, value in model.state_dict().items():
        assert torch.equal(value, resumed_model.state_dict()[name]), name
    for name in ("curve", "losses", "steps", "epochs", "weights_hash", "batches_hash", "epoch_hashes"):
        assert getattr(resumed, name) == getattr(recorder, name), name
    assert len(resumed.epoch_hashes) in (EPOCHS, EPOCHS - 1)
    assert resumed_trainer.global_step == trainer.global_step
    rates = [each.optimizers[0].param_groups[0]["lr"] for each in (trainer, resumed_trainer)]
    assert rates[0] == rates[1]
    assert (recorder.resumed, resumed.resumed) == (0, 1)
    assert resumed.seconds_before > 0


def test_a_damaged_checkpoint_is_removed_and_logged_metrics_are_kept(tmp_path):
    checkpoint, metrics = tmp_path / "resume-1.ckpt", tmp_path / "metrics.csv"
    assert not prepare_resumption(checkpoint)
    checkpoint.write_bytes(b"garbage")
    metrics.write_text("first")
    with pytest.warns(UserWarning, match="The checkpoint is damaged, so that the run starts again"):
        assert not prepare_resumption(checkpoint)
    assert not checkpoint.exists()
    for number, content in enumerate(["first", "second"], start=1):
        metrics.write_text(content)
        torch.save({}, checkpoint)
        assert prepare_resumption(checkpoint)
        assert (tmp_path / f"metrics-{number}.csv").read_text() == content
    assert not metrics.exists()


def test_short_trainings_are_not_saved(monkeypatch):
    monkeypatch.setattr(checkpoints, "_MIN_SECONDS", 60.0)
    train(PACKAGES[0])
    assert not PATH.exists()


def test_what_cannot_be_saved_is_trained_all_the_same(monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.warns(UserWarning, match="cannot be resumed if it is interrupted: .*No space left on device"):
        _, trainer, _ = train(PACKAGES[0])
    assert trainer.current_epoch == EPOCHS
    assert not list(Path().glob("*resume*"))


COMMAND = ["-m", "lightning_znorm", "compare", *FLAGS, f"--model={ODD}.Resumable", "--compare.methods=znorm", TWO]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "flags"),
    [
        (signal.SIGKILL, []),
        pytest.param(signal.SIGINT, [], marks=pytest.mark.long),
        pytest.param(signal.SIGKILL, ["--trainer.devices=2"], marks=pytest.mark.long),
    ],
)
def test_a_command_that_was_interrupted_goes_on_in_the_middle_of_its_runs(how, flags):
    command = [*COMMAND, *flags]
    process = warm.start(*command, env={"PYTHONPATH": str(ROOT)})
    while len(list(Path("out").glob("runs/*/waiting"))) < 2:
        assert process.poll() is None, process.communicate()
    others = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(how)
    process.communicate()
    psutil.wait_procs(others, timeout=300)
    assert not read_results("out")
    assert len(list(Path("out").glob("runs/*/resume-*.ckpt"))) == 2
    for arguments in (command, [*command, "--compare.out=undisturbed"]):
        Path("undisturbed").mkdir(exist_ok=True)
        again = warm.start(*arguments, env={"PYTHONPATH": str(ROOT), "UNDISTURBED": "1"})
        _, err = again.communicate()
        assert again.returncode == 0, err
    resumed, whole = read_results("out"), read_results("undisturbed")
    assert [result["resumed"] for result in resumed.values()] == [1, 1]
    assert [result["resumed"] for result in whole.values()] == [0, 0]
    assert figures(resumed) == figures(whole)
    assert [result["epoch_hashes"] for result in resumed.values()] == [
        result["epoch_hashes"] for result in whole.values()
    ]
    assert "resumed from a checkpoint" in Path("out/summary.md").read_text()
    assert not list(Path("out").rglob("*.ckpt"))


def test_the_checkpoint_of_other_code_is_not_taken(monkeypatch, tmp_path):
    here = find_checkpoint(tmp_path)
    monkeypatch.setattr(results, "find_versions", lambda: {"torch": "1.0"})
    assert find_checkpoint(tmp_path).parent == here.parent
    assert find_checkpoint(tmp_path) != here
