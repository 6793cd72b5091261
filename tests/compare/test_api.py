"""`compare` from Python, with modules and data that no other process can import."""

import os
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_znorm import ZNorm
from lightning_znorm.compare import compare
from tests.compare.helpers import QUICK, read_results
from tests.compare.tiny import Halve, TinyData, TinyModel


@pytest.mark.long
def test_the_same_as_the_report():
    frame = compare(
        TinyModel,
        TinyData(batch_size=20),
        "none,znorm",
        sweep={"lr": [0.3, 0.03]},
        confirm=6,
        monitor="val_acc",
        trainer=QUICK,
        jobs=2,
        out="out",
    )
    assert list(frame.index) == ["none", "znorm"]
    runs = pd.read_csv("out/runs.csv")
    assert len(runs) == 2 * (6 + 6)
    for method, row in frame.iterrows():
        own = runs[(runs["method"] == method) & (runs["stage"] == "confirmation")]
        assert set(own["lr"]) == {float(row["setting"].removeprefix("lr="))}
        assert row["test"] == pytest.approx(own["test"].mean())
        assert row["validation"] == pytest.approx(own["validation"].mean())
        selection = runs[(runs["method"] == method) & (runs["stage"] == "selection")].groupby("lr")["validation"]
        assert selection.mean()[own["lr"].iloc[0]] == pytest.approx(selection.mean().max())
    assert len(frame.attrs["verdicts"]) == 1
    assert frame.attrs["verdicts"][0] in Path("out/summary.md").read_text()
    assert frame.attrs["answer"] in Path("out/summary.md").read_text()
    assert frame.loc["znorm", "answer"] in ("better", "worse", "undecided")
    assert frame.loc["znorm", "pairs"] == 6
    assert "lightning-znorm fit" not in Path("out/summary.md").read_text()
    assert frame.loc["none", ["difference", "p_holm"]].isna().all()
    pd.concat([frame, frame])  # attrs that can be compared


@pytest.mark.slow
def test_what_only_this_function_knows():
    offset = torch.tensor([1.0])

    class Local(pl.LightningModule):
        def __init__(self, lr):
            super().__init__()
            self.layer, self.lr = nn.Linear(2, 1), lr

        def training_step(self, batch, batch_idx):
            return (self.layer(batch[0]) - offset).square().mean()

        def validation_step(self, batch, batch_idx):
            return self.training_step(batch, batch_idx)

        test_step = validation_step

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=self.lr)

    class LocalData(pl.LightningDataModule):
        def train_dataloader(self):
            return DataLoader(TensorDataset(torch.ones(8, 2)), batch_size=2)

        val_dataloader = test_dataloader = train_dataloader

    frame = compare(
        lambda lr: Local(lr),
        LocalData,
        {"plain": None, "half": Halve(0.5), "both": [Halve(0.5), ZNorm()], "text": "znorm(min_ndim=2)"},
        sweep={"lr": [0.1]},
        confirm=[7, 1, 2, 3, 4, 5, 6],
        jobs=2,
        monitor="validation_step",
        mode="min",
        test_monitor="test_step",
        baseline="half",
        trainer={**QUICK, "max_epochs": 1, "callbacks": Halve(1.0)},
    )
    assert frame["runs"].tolist() == [7, 7, 7, 7]
    assert frame["test"].nunique() >= 3
    assert frame.loc["half", "difference"] != frame.loc["half", "difference"]


@pytest.mark.slow
def test_each_comparison_has_the_environment_of_its_own_time(monkeypatch):
    """Not that in which the first one of the process started the fork server."""

    def make():
        return TinyModel(width=int(os.environ.get("WIDTH_OF_TINY", 2)))

    hashes = []
    for width in ("3", "4", None):
        monkeypatch.delenv("WIDTH_OF_TINY", raising=False)
        if width:
            monkeypatch.setenv("WIDTH_OF_TINY", width)
        compare(make, TinyData, confirm=1, methods="none", monitor="val_acc", trainer=QUICK, out=f"out{width}")
        hashes += [result["weights_hash"] for result in read_results(f"out{width}").values()]
    assert len(set(hashes)) == 3


@pytest.mark.long
def test_the_seed_reaches_functions_of_the_global_generators():
    """cloudpickle would take a copy of the generator along."""
    from random import randint

    def make():
        model = TinyModel()
        for parameter in model.parameters():
            nn.init.constant_(parameter, randint(1, 10**9))
        return model

    arguments = {"monitor": "val_acc", "trainer": QUICK, "out": "out", "methods": "none,gc"}
    compare(make, TinyData(20), confirm=[1, 2, 3, 4, 5, 6], **arguments)
    hashes = {(result["seed"], result["weights_hash"]) for result in read_results("out").values()}
    assert len(hashes) == 6
    assert len({value for _, value in hashes}) == 6
    assert compare(make, TinyData(20), confirm=[*range(1, 8)], **arguments)["runs"].tolist() == [7, 7]


SCRIPT = """
import importlib.abc, sys
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
from importlib.util import find_spec as find
import importlib.util
importlib.util.find_spec = lambda name, *args: None if name.partition(".")[0] == {missing!r} else find(name, *args)
import torch
from torch.utils.data import DataLoader, TensorDataset
from lightning_znorm.compare import compare
import {package} as pl
class Model(pl.LightningModule):
    def __init__(self, activation):
        super().__init__()
        self.layer = torch.nn.Sequential(torch.nn.Linear(2, 2), activation(), torch.nn.Linear(2, 1))
    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).square().mean()
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.training_step(batch, batch_idx))
    def test_step(self, batch, batch_idx):
        self.log("test_loss", self.training_step(batch, batch_idx))
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.randn(8, 2)), 2)
    val_dataloader = test_dataloader = train_dataloader
class Mine(torch.nn.Tanh):
    pass
class Other(torch.nn.ReLU):
    pass
if __name__ == "__main__":
    quick = dict(max_epochs=1, accelerator="cpu")
    frame = compare(Model, None, "znorm", sweep=dict(activation=[Mine, Other]), confirm=1, trainer=quick, jobs=1)
    print(frame["setting"].tolist())
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("package", "missing"), [("pytorch_lightning", "lightning"), ("lightning.pytorch", "pytorch_lightning")]
)
def test_classes_of_a_script_where_one_lightning_package_is_installed(package, missing):
    Path("mine.py").write_text(SCRIPT.format(package=package, missing=missing))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "mine.py"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "activation=" in done.stdout
