"""`attach` under a GradScaler."""

import copy

import pytest
import torch

from lightning_znorm import ZNorm, attach
from tests.attach.helpers import loss_of, sgd, stds
from tests.helpers import small_network


def test_float16_gradients_under_a_scaler():
    network = small_network().half()
    optimizer = sgd(network, fused=True)
    attach(optimizer, ZNorm())
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(network(torch.randn(4, 6).half()).float().square().mean()).backward()
    before = network[0].weight.detach().clone()
    with pytest.raises(TypeError, match=r"`param_groups\[0\]\['params'\]\[0\]` is float16 and still multiplied by"):
        scaler.step(optimizer)
    assert torch.equal(network[0].weight, before)


@pytest.mark.parametrize("kind", [{"foreach": False}, {"fused": True}], ids=str)
@pytest.mark.parametrize("unscale", [True, False])
@pytest.mark.parametrize("clip", [True, False])
def test_a_scaler_with_clipping_before(kind, unscale, clip):
    """`unscale_` for clipping tells a fused optimizer not to divide again."""
    updates = []
    for scaled in (False, True):
        torch.manual_seed(0)
        network = small_network()
        before = network[0].weight.detach().clone()
        optimizer = sgd(network, **kind)
        attach(optimizer, ZNorm(eps=0.3))
        scaler = torch.amp.GradScaler("cpu", enabled=scaled)
        scaler.scale(loss_of(network)).backward()
        if unscale:
            scaler.unscale_(optimizer)
            if clip:
                torch.nn.utils.clip_grad_norm_(network.parameters(), 0.01)
        scaler.step(optimizer)
        scaler.update()
        updates.append(network[0].weight.detach() - before)
    torch.testing.assert_close(updates[1], updates[0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", [{"foreach": False}, {"fused": True}], ids=str)
@pytest.mark.parametrize("nonfinite", ["propagate", "skip"])
def test_the_scaler_skips_an_inf(kind, nonfinite):
    network = small_network()
    before = copy.deepcopy(network)
    optimizer = sgd(network, **kind)
    handle = attach(optimizer, ZNorm(nonfinite=nonfinite))
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(loss_of(network) * torch.inf).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(before[0].weight, network[0].weight)
    assert scaler.get_scale() == 2.0**15
    assert handle.skipped_steps == 0


def test_an_optimizer_that_takes_the_scaler_itself():
    """The older of the two ways in which a GradScaler hands its scale to an optimizer."""

    class Own(torch.optim.SGD):
        _step_supports_amp_scaling = True

        def step(self, closure=None, *, grad_scaler=None):
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.grad.div_(grad_scaler.get_scale())
            return super().step(closure)

    network = small_network()
    optimizer = Own(network.parameters(), lr=0.1)
    attach(optimizer, ZNorm())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(loss_of(network)).backward()
    with pytest.warns(FutureWarning, match="GradScaler"):
        scaler.step(optimizer)
    assert stds(network) == pytest.approx([1] * 4, abs=1e-3)
