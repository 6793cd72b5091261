"""`compare` from Python once more: which results it uses again, and which it refuses."""

import time
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_znorm.compare import compare
from lightning_znorm.errors import ComparisonError
from tests.compare.helpers import QUICK, read_results
from tests.compare.odd import Destructive
from tests.compare.tiny import Halve, TinyData, TinyModel

ONE = {"methods": "none", "sweep": None, "confirm": 1}


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
def test_what_no_other_process_recognizes_is_not_used_again():
    arguments = {"monitor": "val_acc", "trainer": QUICK, "out": "out", **ONE}
    data = Clock()
    with pytest.warns(UserWarning, match=r"cannot be used again later.*look different in every process \(datamodule\)"):
        compare(TinyModel, data, **arguments)
    with pytest.raises(ValueError, match=r"datamodule\.digest is"):
        compare(TinyModel, data, **arguments)
