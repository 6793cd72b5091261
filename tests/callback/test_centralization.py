"""GradientCentralization inside Trainers and attached: the method is its own, everything else is ZNorm's."""

import copy
from importlib import import_module

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_znorm import GradientCentralization, ZNorm, attach
from lightning_znorm._lightning import MisconfigurationError
from tests.attach.helpers import backpropagate, loss_of, sgd
from tests.helpers import (
    FIRST_PACKAGE,
    PACKAGES,
    centralize_by_numpy,
    make_module,
    make_trainer,
    precision_arguments,
    recording_logger,
    small_data,
    small_network,
    znorm_by_numpy,
)


def by_hand(network, steps, *transforms):
    """Plain PyTorch with transforms by NumPy."""
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for inputs, targets in list(DataLoader(small_data(), batch_size=4))[:steps]:
        optimizer.zero_grad()
        nn.functional.mse_loss(network(inputs), targets).backward()
        for parameter in network.parameters():
            for transform in transforms:
                parameter.grad.copy_(torch.from_numpy(transform(parameter.grad).astype("float32")))
        optimizer.step()
    return network


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01)


def assert_same_weights(network, expected):
    for trained, reference in zip(network.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(trained, reference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("package", PACKAGES)
def test_five_steps_equal_a_loop_by_hand(package):
    network = small_network()
    expected = by_hand(copy.deepcopy(network), 5, centralize_by_numpy)
    make_trainer(package, max_steps=5, callbacks=[GradientCentralization()]).fit(make_module(package, network, adam))
    assert_same_weights(network, expected)


def test_together_with_znorm_in_the_order_of_the_callbacks():
    expected = {}
    for order in ((GradientCentralization, ZNorm), (ZNorm, GradientCentralization)):
        torch.manual_seed(0)
        network = small_network()
        transforms = [centralize_by_numpy if cls is GradientCentralization else znorm_by_numpy for cls in order]
        expected[order] = by_hand(copy.deepcopy(network), 3, *transforms)
        callbacks = [cls() for cls in order]
        make_trainer(max_steps=3, callbacks=callbacks).fit(make_module(network=network, optimizer=adam))
        assert_same_weights(network, expected[order])
    first, second = expected.values()
    assert not torch.allclose(first[0].weight, second[0].weight)


def test_attached_to_an_optimizer():
    network = small_network()
    optimizer = sgd(network)
    handle = attach(optimizer, GradientCentralization(exclude="2.weight"), network)
    backpropagate(network)
    raw = [p.grad.clone() for p in network.parameters()]
    optimizer.step()
    assert len(handle.stats) == 1
    torch.testing.assert_close(
        network[0].weight.grad.double(), torch.from_numpy(centralize_by_numpy(raw[0]).astype(float))
    )
    for before, after in zip(raw[1:], list(network.parameters())[1:], strict=True):
        assert torch.equal(before, after.grad)
    attach(optimizer, ZNorm())
    with pytest.raises(MisconfigurationError, match=r"`GradientCentralization` is attached .* already"):
        attach(optimizer, GradientCentralization())


@pytest.mark.parametrize("package", FIRST_PACKAGE)
@pytest.mark.parametrize("kind", [{"foreach": False}, {"fused": True}], ids=str)
def test_a_grad_scaler_makes_no_difference(package, kind):
    networks = []
    for precision in ("32-true", "16-mixed"):
        torch.manual_seed(0)
        network = small_network()
        optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.125, **kind)  # noqa: E731
        arguments = precision_arguments(package, precision)
        trainer = make_trainer(package, max_steps=1, callbacks=[GradientCentralization()], **arguments)
        trainer.fit(make_module(package, network, optimizer))
        networks.append(network)
    torch.testing.assert_close(networks[1][0].weight, networks[0][0].weight, rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", [{"foreach": False}, {"fused": True}], ids=str)
def test_attached_under_a_grad_scaler(kind):
    updates = []
    for scaled in (False, True):
        torch.manual_seed(0)
        network = small_network()
        before = network[0].weight.detach().clone()
        optimizer = sgd(network, **kind)
        attach(optimizer, GradientCentralization())
        scaler = torch.amp.GradScaler("cpu", enabled=scaled)
        scaler.scale(loss_of(network)).backward()
        scaler.step(optimizer)
        scaler.update()
        updates.append(network[0].weight.detach() - before)
    torch.testing.assert_close(updates[1], updates[0], rtol=1e-5, atol=1e-7)


def test_logs_under_its_own_prefix():
    logger = recording_logger("lightning.pytorch", prefix="gc/")
    callback = GradientCentralization(log_stats="layers")
    make_trainer(max_steps=2, logger=logger, log_every_n_steps=2, callbacks=[callback]).fit(make_module())
    ((step, metrics),) = logger.rows
    assert step == 1
    assert set(metrics) == {f"gc/{kind}/network.{layer}.weight" for kind in ("mean", "std") for layer in (0, 2)}


@pytest.mark.parametrize("package", FIRST_PACKAGE)
def test_two_enabled_are_refused(package):
    error = import_module(f"{package}.utilities.exceptions").MisconfigurationException
    callbacks = [GradientCentralization(), GradientCentralization(min_ndim=4)]
    with pytest.raises(error, match="2 enabled `GradientCentralization` callbacks"):
        make_trainer(package, max_steps=1, callbacks=callbacks).fit(make_module(package))


def test_lbfgs_is_refused():
    with pytest.raises(MisconfigurationError, match=r"`GradientCentralization` does not support .*`LBFGS`"):
        make_trainer(max_steps=1, callbacks=[GradientCentralization()]).fit(make_module(optimizer=torch.optim.LBFGS))


@pytest.mark.parametrize(
    ("argument", "value"), [("min_ndim", -1), ("start_step", 0.5), ("nonfinite", "ignore"), ("log_stats", True)]
)
def test_wrong_arguments(argument, value):
    with pytest.raises(ValueError, match=f"Expected argument `{argument}` to be"):
        GradientCentralization(**{argument: value})


def test_clipping_after_it_is_nothing_to_warn_about(recwarn):
    make_trainer(max_steps=1, callbacks=[GradientCentralization()], gradient_clip_val=1.0).fit(make_module())
    assert not [w for w in recwarn if "gradient_clip_val" in str(w.message)]
