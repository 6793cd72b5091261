import math
import pickle
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch import cli as lightning_cli
from torch.optim import SGD, lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

from lightning_znorm.__main__ import main
from lightning_znorm.vision import CosineAnnealing, ImageClassifier
from tests.helpers import make_trainer

LR = 0.01
COSINE = [LR * (1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)]


class Look(Callback):
    """Notes the learning rate of each step."""

    def __init__(self):
        self.rates = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])


def classifier(scheduler=None, optimizer=partial(SGD, lr=LR)):  # noqa: B008
    return ImageClassifier("squeezenet1_1", 2, 1, optimizer=optimizer, lr_scheduler=scheduler)


def batches():
    return DataLoader(TensorDataset(torch.randn(12, 1, 32, 32), torch.arange(12) % 2), batch_size=4)


def learning_rates(scheduler, epochs=2):
    """The learning rate of each optimizer step of a real training with 3 batches an epoch."""
    look = Look()
    make_trainer(max_epochs=epochs, callbacks=[look]).fit(classifier(scheduler), batches(), batches())
    return look.rates


def test_constant_without_a_scheduler():
    assert learning_rates(None) == [LR] * 6


@pytest.mark.parametrize(
    "scheduler", [CosineAnnealing, partial(CosineAnnealing, eta_min=0), lr_scheduler.CosineAnnealingLR]
)
def test_a_cosine_runs_over_the_whole_training(scheduler):
    assert learning_rates(scheduler) == pytest.approx(COSINE)


def test_a_given_length_wins():
    expected = [LR * (1 + math.cos(math.pi * step / 12)) / 2 for step in range(6)]
    assert learning_rates(partial(CosineAnnealing, total_steps=12)) == pytest.approx(expected)
    assert learning_rates(partial(lr_scheduler.CosineAnnealingLR, T_max=12)) == pytest.approx(expected)


@pytest.mark.parametrize("length", [{}, {"epochs": 2, "steps_per_epoch": 3}])
def test_one_cycle_ends_with_the_training(length):
    rates = learning_rates(partial(lr_scheduler.OneCycleLR, max_lr=LR, pct_start=0.4, **length))
    assert max(rates) == pytest.approx(LR, rel=0.2)
    assert rates[0] < LR / 10
    assert rates[-1] < LR / 100


def test_a_function_of_the_optimizer():
    rates = learning_rates(lambda optimizer: lr_scheduler.StepLR(optimizer, 2))
    assert rates == pytest.approx([LR, LR, LR / 10, LR / 10, LR / 100, LR / 100])


@pytest.mark.parametrize(
    "plateau", [lr_scheduler.ReduceLROnPlateau, partial(lightning_cli.ReduceLROnPlateau, monitor="val_acc")]
)
def test_a_plateau_is_looked_for_after_each_epoch(plateau):
    rates = learning_rates(partial(plateau, patience=0, factor=0.5, threshold=1e9), epochs=3)
    assert rates[:3] == [LR] * 3
    assert rates[-1] < LR


def test_a_training_without_an_end_needs_a_length():
    for scheduler, name in ((CosineAnnealing, "total_steps"), (lr_scheduler.CosineAnnealingLR, "T_max")):
        with pytest.raises(ValueError, match=rf"`lr_scheduler` has no `{name}`.* no end.*`max_epochs`.*give `{name}`"):
            make_trainer(max_epochs=-1).fit(classifier(scheduler), batches())
    for scheduler in (partial(CosineAnnealing, total_steps=9), partial(lr_scheduler.StepLR, step_size=3)):
        assert classifier(scheduler).configure_optimizers()["lr_scheduler"]
    with pytest.raises(ValueError, match=r"lacks its length: give `total_steps`"):
        CosineAnnealing(SGD([torch.zeros(1)]))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"optimizer": "Adam"}, TypeError, r"`optimizer` to be a class or a function, such as .*, but got 'Adam'"),
        ({"scheduler": 3}, TypeError, r"`lr_scheduler` to be a class or a function, such as .*, but got 3"),
        ({"optimizer": partial(SGD, lr=-1)}, ValueError, r"Argument `optimizer`: Invalid learning rate: -1"),
        ({"optimizer": partial(SGD, momentun=1)}, ValueError, r"Argument `optimizer`: .*'momentun'"),
        ({"scheduler": lr_scheduler.StepLR}, ValueError, r"Argument `lr_scheduler`: .*'step_size'"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        classifier(**arguments).configure_optimizers()


def test_a_checkpoint_has_neither_optimizer_nor_scheduler_of_python():
    """As `torch.load` would refuse them; and a training that is resumed has its own."""
    model, trainer = classifier(CosineAnnealing), make_trainer(max_epochs=1)
    trainer.fit(model, batches(), batches())
    trainer.save_checkpoint("model.ckpt")
    assert {"optimizer", "lr_scheduler"}.isdisjoint(torch.load("model.ckpt", weights_only=True)["hyper_parameters"])
    assert isinstance(ImageClassifier.load_from_checkpoint("model.ckpt").configure_optimizers(), torch.optim.Adam)
    again = ImageClassifier.load_from_checkpoint("model.ckpt", optimizer=partial(SGD, lr=LR))
    assert isinstance(again.configure_optimizers(), SGD)
    look = Look()
    make_trainer(max_epochs=2, callbacks=[look]).fit(
        classifier(CosineAnnealing), batches(), batches(), ckpt_path="model.ckpt"
    )
    assert len(look.rates) == 3


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_checkpoint_of_the_command_line_has_them_as_class_paths():
    model = "lightning_znorm.vision.ImageClassifier"
    args = [f"--model={model}", "--model.backbone=squeezenet1_1", "--model.in_channels=1", "--model.optimizer=SGD"]
    args += ["--model.optimizer.lr=0.5", "--model.lr_scheduler=lightning_znorm.vision.CosineAnnealing"]
    args += ["--data=lightning_znorm.vision.Digits", "--trainer.accelerator=cpu", "--trainer.max_steps=2"]
    main(["fit", *args, "--trainer.limit_val_batches=0", "--trainer.enable_progress_bar=false"])
    (checkpoint,) = Path().rglob("*.ckpt")
    hyperparameters = torch.load(checkpoint, weights_only=True)["hyper_parameters"]
    assert hyperparameters["optimizer"]["class_path"] == "torch.optim.SGD"
    model = ImageClassifier.load_from_checkpoint(checkpoint)
    optimizer = model.optimizer(model.parameters())
    assert (type(optimizer), optimizer.defaults["lr"]) == (SGD, 0.5)
    assert isinstance(model.lr_scheduler(optimizer, total_steps=9), CosineAnnealing)
    pickle.loads(pickle.dumps(model))


def test_a_module_can_be_pickled():
    model = pickle.loads(pickle.dumps(classifier(partial(CosineAnnealing, eta_min=0.1))))
    assert model.optimizer.keywords == {"lr": LR}
