"""Precision of the Trainer: the first update equals float32's, and a GradScaler does its work."""

import copy
from importlib import import_module

import numpy as np
import pytest
import torch
from torch import nn

from lightning_znorm import ZNorm, znorm_
from tests.helpers import (
    FIRST_PACKAGE,
    PACKAGES,
    make_module,
    make_trainer,
    parameter,
    precision_arguments,
    recording_logger,
    skip_if_pytorch_is_wrong,
    small_network,
    znorm_by_numpy,
)

LR = 0.125
# in units of the largest normalized gradient times the learning rate: the rounding of activations and weights
TOLERANCES = {"bf16-mixed": 0.05, "16-mixed": 0.01, "bf16-true": 0.1, "16-true": 0.02, "64-true": 1e-5}


def sgd(kind):
    return lambda parameters: torch.optim.SGD(parameters, lr=LR, **kind)


def first_update(precision, kind, package="lightning.pytorch"):
    torch.manual_seed(2)
    network = small_network()
    before = copy.deepcopy(network)
    trainer = make_trainer(package, max_steps=1, callbacks=[ZNorm()], **precision_arguments(package, precision))
    trainer.fit(make_module(package, network, sgd(kind)))
    pairs = zip(network.parameters(), before.parameters(), strict=True)
    return torch.cat([(a.detach().double() - b.detach().double()).flatten() for a, b in pairs])


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("kind", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=str)
@pytest.mark.parametrize("precision", TOLERANCES)
def test_first_update_equals_that_of_float32(precision, kind, package):
    if "fused" in kind and precision in ("bf16-true", "16-true"):
        skip_if_pytorch_is_wrong(torch.bfloat16 if precision == "bf16-true" else torch.float16)
    expected = first_update("32-true", {"foreach": False}, package)
    update = first_update(precision, kind, package)
    assert (update - expected).abs().max() <= TOLERANCES[precision] * expected.abs().max()


@pytest.mark.parametrize("package", FIRST_PACKAGE)
@pytest.mark.parametrize("kind", [{"foreach": False}, {"fused": True}], ids=str)
@pytest.mark.parametrize("nonfinite", ["propagate", "skip"])
def test_the_scaler_still_skips_an_inf_loss(kind, nonfinite, package):
    network = small_network()
    before = copy.deepcopy(network)
    module = make_module(package, network, sgd(kind))
    step = module.training_step
    module.training_step = lambda batch, batch_idx: step(batch, batch_idx) * (torch.inf if batch_idx == 0 else 1)
    callback = ZNorm(nonfinite=nonfinite)
    weights = []

    class Look(import_module(package).Callback):
        def on_train_batch_end(self, *args):
            weights.append(network[0].weight.detach().clone())

    arguments = precision_arguments(package, "16-mixed")
    make_trainer(package, max_steps=3, callbacks=[callback, Look()], **arguments).fit(module)
    scaler = arguments["plugins"][0].scaler
    assert torch.equal(weights[0], before[0].weight)
    assert not torch.equal(weights[1], weights[0])
    assert scaler.get_scale() == 2.0**15
    assert callback.skipped_steps == 0


@pytest.mark.parametrize("scale", [2.0**16, 2.0**-3, 1000.0])
def test_a_scaled_gradient_gives_the_scaled_result_and_statistics_without_the_scale(scale):
    raw = torch.randn(300, dtype=torch.float64) * 0.01 + 0.02
    scaled = parameter((raw * scale).float())
    stats = znorm_(scaled, eps=0.005, grad_scale=torch.tensor(scale))
    expected = znorm_by_numpy((raw * scale).float().double() / scale, eps=0.005)
    np.testing.assert_allclose(scaled.grad.double() / scale, expected.astype(float), rtol=1e-6, atol=1e-6)
    assert stats.mean.item() == pytest.approx(raw.mean().item(), rel=1e-6)
    assert stats.std.item() == pytest.approx(raw.std(correction=0).item(), rel=1e-6)


def test_the_scale_of_an_inf_gradient_changes_nothing():
    broken = parameter(torch.tensor([1.0, torch.inf, 3.0]))
    znorm_(broken, grad_scale=torch.tensor([2.0**16]))
    assert broken.grad.tolist() == [1.0, torch.inf, 3.0]


def test_float16_gradients_that_are_still_scaled():
    with pytest.raises(TypeError, match=r"`parameters\[0\]` is float16 and still multiplied.*precision='16-mixed'"):
        znorm_(parameter(torch.ones(3, dtype=torch.float16)), grad_scale=torch.tensor(4.0))


@pytest.mark.parametrize("kind", [{"foreach": False}, {"fused": True}], ids=str)
def test_eps_and_logged_statistics_are_in_the_units_of_the_unscaled_gradient(kind):

    rows, weights = [], []
    for precision in ("32-true", "16-mixed"):
        torch.manual_seed(2)
        network, logger = small_network(), recording_logger("lightning.pytorch")
        make_trainer(
            max_steps=1,
            logger=logger,
            log_every_n_steps=1,
            callbacks=[ZNorm(eps=0.5, log_stats="layers")],
            **precision_arguments("lightning.pytorch", precision),
        ).fit(make_module(network=network, optimizer=sgd(kind)))
        rows.append(logger.rows[0][1])
        weights.append(network[0].weight.detach())
    assert rows[1] == {name: pytest.approx(value, abs=2e-3) for name, value in rows[0].items()}
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", [{"foreach": False}, {"fused": True}], ids=str)
def test_a_scaler_that_is_not_enabled(kind):
    arguments = precision_arguments("lightning.pytorch", "16-mixed", enabled=False)
    network = small_network()
    make_trainer(max_steps=1, callbacks=[ZNorm()], **arguments).fit(make_module(network=network, optimizer=sgd(kind)))
    for trained in network.parameters():
        assert trained.grad.std(correction=0) == pytest.approx(1, abs=1e-5)


def test_gradients_that_the_module_has_unscaled_by_itself():
    """A fused optimizer whose gradients `unscale_` has divided already gets them without the scale."""
    updates = []
    for unscale in (False, True):
        torch.manual_seed(2)
        network = small_network()
        before = network[0].weight.detach().clone()
        module = make_module(network=network, optimizer=sgd({"fused": True}))
        trainer = make_trainer(max_steps=1, callbacks=[ZNorm()], **precision_arguments("lightning.pytorch", "16-mixed"))
        if unscale:
            module.on_after_backward = lambda trainer=trainer: trainer.precision_plugin.scaler.unscale_(
                trainer.optimizers[0]
            )
        trainer.fit(module)
        updates.append(network[0].weight.detach() - before)
    torch.testing.assert_close(updates[1], updates[0])
    assert updates[0].abs().max() > 0.01


@pytest.mark.parametrize("kind", [{"foreach": False}, {"fused": True}], ids=str)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_step_that_returns_none_under_a_scaler(kind, accumulate):
    module = make_module(network=small_network(), optimizer=sgd(kind))
    step = module.training_step
    module.training_step = lambda batch, batch_idx: None if batch_idx in (0, 3) else step(batch, batch_idx)
    arguments = precision_arguments("lightning.pytorch", "16-mixed")
    trainer = make_trainer(max_epochs=1, accumulate_grad_batches=accumulate, callbacks=[ZNorm()], **arguments)
    trainer.fit(module)
    for trained in module.parameters():
        assert trained.isfinite().all()


def test_the_scaler_calibrates_from_a_scale_that_is_too_large():
    arguments = precision_arguments("lightning.pytorch", "16-mixed", init_scale=2.0**60)
    network = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
    before = copy.deepcopy(network)
    make_trainer(max_epochs=8, callbacks=[ZNorm()], **arguments).fit(
        make_module(network=network, optimizer=sgd({"fused": True}))
    )
    assert arguments["plugins"][0].scaler.get_scale() < 2.0**30
    assert not torch.equal(network[0].weight, before[0].weight)
    assert network[0].weight.isfinite().all()
