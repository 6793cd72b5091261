"""GradientMonitor: in which steps, of which parameters, at which cost and place, and what it refuses."""

import math
from importlib import import_module

import pytest
import torch
from torch import nn

from lightning_znorm import GradientMonitor, ZNorm, attach
from tests.callback.test_monitor import fit, look
from tests.callback.test_steps import make_nested
from tests.helpers import FIRST_PACKAGE, PACKAGES, make_module, make_trainer, recording_logger, small_network


def test_the_steps_are_those_of_the_module_s_log():
    logger = recording_logger("lightning.pytorch", prefix=("grad/norm", "train_loss"))
    fit(GradientMonitor(), logger=logger, log_every_n_steps=3, max_steps=8)
    steps = {name: [step for step, row in logger.rows if name in row] for name in ("grad/norm", "train_loss")}
    assert steps == {"grad/norm": [2, 5], "train_loss": [2, 5]}


def test_counts_optimizer_steps_under_accumulation():
    monitor, seen = GradientMonitor(every_n_steps=2), look()
    fit(monitor, seen, accumulate_grad_batches=2, max_steps=5)
    assert sorted({row["step"] for row in monitor.history}) == [1, 3]
    assert monitor.history[0]["std"] == pytest.approx(seen.raw[3]["network.0.weight"].std(correction=0).item())


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("place", [0, 1, 2, 3])
@pytest.mark.parametrize("arguments", [{"max_steps": 1}, {"fast_dev_run": True}], ids=str)
def test_moving_to_the_front_skips_no_callback(package, place, arguments):
    class Count(import_module(package).Callback):
        setups = 0

        def setup(self, trainer, pl_module, stage):
            self.setups += 1

    counters = [type(f"Count{i}", (Count,), {})() for i in range(3)]
    callbacks = [*counters]
    callbacks.insert(place, GradientMonitor(every_n_steps=1))
    trainer = make_trainer(package, callbacks=callbacks, **arguments)
    trainer.fit(make_module(package))
    assert [counter.setups for counter in counters] == [1, 1, 1]
    assert isinstance(trainer.callbacks[0], GradientMonitor)
    assert [callback for callback in trainer.callbacks if isinstance(callback, Count)] == counters
    assert len(trainer.callbacks[0].history) == 4


def test_tied_excluded_frozen_and_unreadable_parameters():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6, bias=False)
            self.second.weight = self.first.weight
            self.frozen = nn.Linear(6, 6).requires_grad_(False)
            self.words = nn.Embedding(4, 3, sparse=True)
            self.waves = nn.Parameter(torch.ones(3, dtype=torch.complex64))
            self.head = nn.Linear(6, 3)

        def forward(self, inputs):
            outputs = self.head(self.frozen(self.second(self.first(inputs))))
            return outputs + self.words(torch.zeros(len(inputs), dtype=torch.long)) + self.waves.abs()

    monitor = GradientMonitor(every_n_steps=1, exclude="*.bias")
    with pytest.warns(
        UserWarning, match=r"leaves out .*`network.waves` \(complex\), `network.words.weight` \(sparse\)"
    ) as w:
        fit(monitor, module=make_module(network=Net()))
    assert len([one for one in w if "leaves out" in str(one.message)]) == 1
    assert [row["name"] for row in monitor.history][:3] == [
        "network.first.weight",
        "network.head.weight",
        "network.first.weight",
    ]


def test_optimizers_that_evaluate_their_closure_again_or_call_their_parents_step():
    monitor = GradientMonitor(every_n_steps=1)
    fit(monitor, module=make_module(optimizer=lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=4)))
    assert [row["step"] for row in monitor.history] == [0] * 4 + [1] * 4 + [2] * 4
    nested = make_nested()
    fit(monitor, module=make_module(optimizer=lambda parameters: nested(parameters, lr=0.01)))
    assert len(monitor.history) == 12


def test_sees_what_an_attached_transform_does():
    monitor = GradientMonitor(every_n_steps=1)
    module = make_module()
    configure = module.configure_optimizers

    def configure_optimizers():
        optimizer = configure()
        attach(optimizer, ZNorm())
        return optimizer

    module.configure_optimizers = configure_optimizers
    fit(monitor, module=module)
    assert [row["received_std"] for row in monitor.history] == pytest.approx([1] * 12, abs=1e-6)


def test_training_is_the_same_with_and_without():
    networks = []
    for callbacks in ([ZNorm()], [ZNorm(), GradientMonitor(every_n_steps=1)]):
        torch.manual_seed(0)
        networks.append(small_network())
        fit(*callbacks, module=make_module(network=networks[-1]))
    assert all(torch.equal(*pair) for pair in zip(*(n.parameters() for n in networks), strict=True))


def test_the_history_is_that_of_the_latest_training():
    monitor = GradientMonitor(every_n_steps=1)
    fit(monitor, max_steps=3)
    fit(monitor, max_steps=2)
    assert len(monitor.history) == 8
    assert monitor._watch is None


def test_disabled_does_nothing():
    monitor = GradientMonitor(every_n_steps=1, exclude="nothing", picture="gradients.png", enabled=False)
    trainer = fit(ZNorm(), monitor)
    assert trainer.callbacks[1] is monitor
    assert monitor.history == []


def test_only_rank_zero_looks(monkeypatch):
    monitor = GradientMonitor(every_n_steps=1, picture="gradients.png")
    trainer = make_trainer(max_steps=1, callbacks=[monitor])
    monkeypatch.setattr(type(trainer), "is_global_zero", False)
    trainer.fit(make_module())
    assert monitor.history == []


def test_a_training_without_a_record_warns():
    with pytest.warns(UserWarning, match=r"recorded nothing.*log_every_n_steps=50.*every_n_steps=1"):
        fit(GradientMonitor())


@pytest.mark.parametrize("package", FIRST_PACKAGE)
def test_exclude_that_matches_nothing(package):
    error = import_module(f"{package}.utilities.exceptions").MisconfigurationException
    with pytest.raises(error, match=r"`exclude` of `GradientMonitor`: the pattern 'encoder\.\*' matches no parameter"):
        fit(GradientMonitor(exclude="encoder.*"), package=package)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("detail", "everything"),
        ("every_n_steps", 0),
        ("every_n_steps", 1.5),
        ("near_zero", -1e-8),
        ("near_zero", math.nan),
        ("near_zero", "small"),
        ("every_n_steps", True),
        ("near_zero", True),
        ("max_records", 1),
        ("max_records", 2.5),
        ("max_records", True),
        ("picture", ""),
        ("picture", 3),
    ],
)
def test_wrong_arguments(argument, value):
    with pytest.raises(ValueError, match=f"Expected argument `{argument}` to be .* but got"):
        GradientMonitor(**{argument: value})
