"""What `compare` refuses from Python, at once and after a trial."""

import pytest

from lightning_znorm import ZNorm
from lightning_znorm.compare import compare
from tests.compare.helpers import QUICK
from tests.compare.tiny import TinyData, TinyModel, WithoutTest


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
