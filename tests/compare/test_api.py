"""`compare` from Python, with modules and data that no other process can import."""

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_znorm import ZNorm
from lightning_znorm.compare import compare
from lightning_znorm.errors import ComparisonError
from tests.compare.helpers import read_results
from tests.compare.odd import Destructive
from tests.compare.tiny import Halve, TinyData, TinyModel, WithoutTest

QUICK = {"max_epochs": 2, "accelerator": "cpu"}
ONE = {"methods": "none", "sweep": None, "confirm": 1}


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


@pytest.mark.long
def test_a_sweep_of_objects_goes_on_as_well():
    def make(optimizer, betas):
        class Local(TinyModel):
            def configure_optimizers(self):
                return optimizer(self.parameters(), lr=0.1, betas=betas)

        return Local()

    sweep = {"optimizer": [torch.optim.Adam, torch.optim.AdamW], "betas": [(0.9, 0.99), (0.5, 0.9)]}
    arguments = {"methods": "none", "sweep": sweep, "monitor": "val_acc", "trainer": QUICK, "out": "out"}
    frame = compare(make, TinyData(), confirm=1, **arguments)
    assert frame.loc["none", "setting"].startswith("optimizer=Adam")
    before = read_results("out")
    assert compare(make, TinyData(), confirm=2, **arguments).loc["none", "runs"] == 2
    assert before.items() <= read_results("out").items()
    assert len(read_results("out")) == 4 + 3 * 2 + 2


@pytest.mark.slow
def test_goes_on_and_refuses_another_configuration():
    arguments = {"monitor": "val_acc", "trainer": QUICK, "out": "out", **ONE}
    compare(TinyModel, TinyData(), **arguments)
    before = read_results("out")
    frame = compare(TinyModel, TinyData(), **{**arguments, "confirm": 2})
    assert frame.loc["none", "runs"] == 2
    assert before.items() <= read_results("out").items()
    with pytest.raises(ValueError, match=r"another configuration \(trainer\.max_epochs is 3, was 2\)"):
        compare(TinyModel, TinyData(), **{**arguments, "trainer": {**QUICK, "max_epochs": 3}})
    with pytest.raises(ValueError, match="another configuration"):
        compare(lambda: TinyModel(width=8), TinyData(), **arguments)


class Clock(TinyData):
    """Says something else about itself whenever it is pickled."""

    def __getstate__(self):
        return {**vars(self), "packed": time.monotonic_ns()}


@pytest.mark.slow
def test_another_experiment_is_never_answered_with_the_results_of_the_first():
    """Whatever hides the difference: a partial, a closure, the data module, a callback of the Trainer."""

    def width(number):
        return lambda: TinyModel(width=number)

    first = {"model_factory": width(4), "datamodule": TinyData(20), "trainer": {**QUICK, "callbacks": [Halve(0.5)]}}
    arguments = {"monitor": "val_acc", "out": "out", **ONE, "jobs": 1}
    compare(**first, **arguments)
    for name, value, message in [
        ("model_factory", partial(TinyModel, width=4), "model_factory.name is 'partial of"),
        ("model_factory", width(8), r"model_factory\.digest is"),
        ("datamodule", TinyData(40), r"\(datamodule\.attributes\.batch_size is 40, was 20\)"),
        ("trainer", {**QUICK, "callbacks": [Halve(0.1)]}, "trainer.callbacks is"),
    ]:
        with pytest.raises(ValueError, match=message):
            compare(**{**first, name: value}, **arguments)
    # the same, made once more
    again = {"model_factory": width(4), "datamodule": TinyData(20), "trainer": {**QUICK, "callbacks": [Halve(0.5)]}}
    before = {path: path.stat().st_mtime_ns for path in Path("out").glob("runs/*/result.json")}
    compare(**again, **arguments)
    assert {path: path.stat().st_mtime_ns for path in Path("out").glob("runs/*/result.json")} == before


@pytest.mark.slow
def test_methods_and_settings_that_are_objects_have_results_of_their_own():
    class Steps(Halve):
        def __init__(self, factors):
            self.by, self.factors = factors[0], factors

    class Small(nn.Tanh):
        pass

    def make(kind):
        model = TinyModel()
        model.network[1] = kind()
        return model

    arguments = {"monitor": "val_acc", "out": "out", "confirm": 1, "trainer": QUICK, "jobs": 2}
    arguments |= {"sweep": {"kind": [Small, nn.ReLU]}}
    frame = compare(make, TinyData(20), {"half": Steps([0.5, 1])}, **arguments)
    assert set(frame["runs"]) == {1}
    assert len(read_results("out")) == 7
    compare(make, TinyData(20), {"half": Steps([0.1, 1])}, **arguments)
    assert len(read_results("out")) == 14


@pytest.mark.slow
def test_results_that_disappear():
    """An error, and no interruption."""
    arguments = {"monitor": "val_acc", "sweep": None, "confirm": 2, "trainer": QUICK, "jobs": 1, "out": "out"}
    with pytest.raises(ComparisonError, match=r"Results have disappeared from .*: 1 of 2 are left\."):
        compare(Destructive, TinyData, "none", **arguments)


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


@pytest.mark.slow
def test_what_no_other_process_recognizes_is_not_used_again():
    arguments = {"monitor": "val_acc", "trainer": QUICK, "out": "out", **ONE}
    data = Clock()
    with pytest.warns(UserWarning, match=r"cannot be used again later.*look different in every process \(datamodule\)"):
        compare(TinyModel, data, **arguments)
    with pytest.raises(ValueError, match=r"datamodule\.digest is"):
        compare(TinyModel, data, **arguments)


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_factory": TinyModel()}, "Expected argument `model_factory` to be a function"),
        ({"sweep": {"depth": [1, 2]}}, r"cannot be called with the keys of `sweep` \(depth\)"),
        ({"methods": "znrom"}, "unknown method 'znrom'"),
        ({"trainer": {"callbacks": [ZNorm()]}}, "already contain ZNorm"),
        ({"trainer": {"gradient_clip_val": 0.5}}, "already clip gradients"),
        ({"trainer": {"num_nodes": 4}}, "ask for several machines"),
        ({"trainer": {"max_epoch": 4}}, "The Trainer has no argument `max_epoch`. Did you mean 'max_epochs'"),
        ({"confirm": 0}, "argument `confirm`"),
        ({"confirm": 5, "methods": "none,znorm"}, "asks for 5 pairs"),
        ({"confirm": 8, "width": 0.1}, "`confirm` and `width` exclude each other"),
        ({"margin": 0.0}, "argument `margin` to be a positive number"),
        ({"vary": "seed"}, "neither `model_factory` nor a function `datamodule` has an argument of that name"),
        ({"vary": "lr", "sweep": {"lr": [0.1]}}, "The key `lr` is swept"),
        (
            {"sweep": {"lr": {"none": [0.1], "adam": [0.2]}}},
            "values of `lr` for none, adam, but the methods are none, clip",
        ),
        ({"sweep": {"lr": 0.1}}, "has 0.1 for the key `lr`; expected a list such as"),
        ({"sweep": {"width": "auto", "lr": "auto"}}, "searches width, lr. Search one"),
        ({"sweep": {"optimizer": "auto"}}, "`optimizer` has no positive number in the configuration"),
        (
            {"model_factory": lambda: TinyModel(), "sweep": "lr=auto"},
            "no `lr` or `learning_rate` with a positive number",
        ),
    ],
)
def test_wrong_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        compare(**{"model_factory": TinyModel, "datamodule": TinyData(), "monitor": "val_acc", **changes})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_factory": WithoutTest}, "the module has no `test_step`"),
        ({"monitor": "val_dice"}, r"does not log that in its validation.* It logs val_loss, val_acc\."),
        ({"model_factory": lambda: TinyModel(width=-1)}, "The trial of method `none` failed: RuntimeError"),
    ],
)
def test_refusals_after_a_trial(changes, message):
    arguments = {
        "model_factory": TinyModel,
        "datamodule": TinyData(),
        "monitor": "val_acc",
        "trainer": QUICK,
        "sweep": None,
    }
    with pytest.raises(ValueError, match=message):
        compare(**{**arguments, "methods": "none", **changes})
