import math

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_znorm.vision import ImageClassifier
from lightning_znorm.vision._optim import configure, find_optimizer, find_scheduler
from tests.helpers import make_trainer

LR = 0.01


def learning_rates(scheduler, scheduler_args=None, epochs=2):
    """The learning rate of each optimizer step of a real training with 3 batches an epoch."""
    from lightning.pytorch import Callback

    rates = []

    class Look(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            rates.append(optimizer.param_groups[0]["lr"])

    data = TensorDataset(torch.randn(12, 1, 32, 32), torch.arange(12) % 2)
    loader = DataLoader(data, batch_size=4)
    model = ImageClassifier(
        "squeezenet1_1", 2, 1, optimizer="SGD", lr=LR, scheduler=scheduler, scheduler_args=scheduler_args
    )
    make_trainer(max_epochs=epochs, callbacks=[Look()]).fit(model, loader, loader)
    return rates


def test_constant_without_a_scheduler():
    assert learning_rates(None) == [LR] * 6


def test_cosine_runs_over_the_whole_training():
    expected = [LR * (1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)]
    assert learning_rates("CosineAnnealingLR") == pytest.approx(expected)


def test_given_arguments_win():
    expected = [LR * (1 + math.cos(math.pi * step / 12)) / 2 for step in range(6)]
    assert learning_rates("CosineAnnealingLR", {"T_max": 12}) == pytest.approx(expected)


def test_one_cycle_peaks_at_the_learning_rate():
    rates = learning_rates("OneCycleLR", {"pct_start": 0.4})
    assert max(rates) == pytest.approx(LR, rel=0.2)
    assert rates[0] < LR / 10
    assert rates[-1] < LR / 100


def test_step_counts_optimizer_steps():
    assert learning_rates("steplr", {"step_size": 2, "gamma": 0.1}) == pytest.approx(
        [LR, LR, LR / 10, LR / 10, LR / 100, LR / 100]
    )


def test_plateau_looks_at_the_validation_loss_after_each_epoch():
    rates = learning_rates("ReduceLROnPlateau", {"patience": 0, "factor": 0.5, "threshold": 1e9}, epochs=3)
    assert rates[:3] == [LR] * 3
    assert rates[-1] < LR


def test_a_training_without_an_end_needs_a_length():
    parameters = [torch.nn.Parameter(torch.zeros(3))]
    with pytest.raises(ValueError, match=r"`CosineAnnealingLR` needs the length.*max_epochs.*'T_max'"):
        configure(parameters, "SGD", LR, scheduler="CosineAnnealingLR")
    for name, arguments in (("CosineAnnealingLR", {"T_max": 9}), ("StepLR", {"step_size": 3})):
        assert configure(parameters, "SGD", LR, scheduler=name, scheduler_args=arguments)["lr_scheduler"]


@pytest.mark.parametrize("name", ["Adam", "adamw", "SGD", "RMSprop", "RAdam"])
def test_optimizers_by_name(name):
    made = configure([torch.nn.Parameter(torch.zeros(3))], name, lr=0.5)["optimizer"]
    assert type(made).__name__.lower() == name.lower()
    assert made.param_groups[0]["lr"] == 0.5


def test_only_what_torch_offers():
    for name in ("Optimizer", "LRScheduler", "_LRScheduler", ""):
        with pytest.raises(ValueError, match="to be one of"):
            find_optimizer(name)
        with pytest.raises(ValueError, match="to be one of"):
            find_scheduler(name)
