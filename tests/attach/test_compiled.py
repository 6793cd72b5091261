"""`torch.compile(optimizer.step)` leaves the transform to eager PyTorch."""

import warnings

import pytest
import torch

from lightning_znorm import ZNorm, attach
from tests.attach.helpers import backpropagate, stds
from tests.helpers import make_module, make_trainer, small_network


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def traced_files():
    """Files of the package in which Dynamo broke a graph or met what it cannot trace."""
    reasons = [str(key) for counter in torch._dynamo.utils.counters.values() for key in counter]
    return [reason for reason in reasons if "lightning_znorm" in reason and "disable" not in reason]


def test_attached():
    network = small_network()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
    handle = attach(optimizer, ZNorm(), strict=True)
    step = torch.compile(optimizer.step, backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            optimizer.zero_grad()
            backpropagate(network)
            step()
            assert stds(network) == pytest.approx([1] * 4, abs=1e-3)
    assert handle.step == 3
    assert not traced_files()


@pytest.mark.long
def test_in_a_trainer():
    def make(parameters):
        optimizer = torch.optim.SGD(parameters, lr=1e-3, momentum=0.9)
        optimizer.step = torch.compile(optimizer.step, backend="eager")
        return optimizer

    trained = []
    for compiled in (False, True):
        torch.manual_seed(0)
        module = make_module(optimizer=make if compiled else lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9))
        make_trainer(max_steps=3, callbacks=[ZNorm()]).fit(module)
        trained.append(torch.cat([parameter.detach().flatten() for parameter in module.parameters()]))
    torch.testing.assert_close(*trained)
    assert not traced_files()
