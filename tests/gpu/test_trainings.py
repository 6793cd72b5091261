"""Trainings on a GPU."""

import copy

import pytest
import torch
from torch import nn

from lightning_znorm import GradientMonitor, ZNorm, attach
from lightning_znorm.backends import reference
from tests.helpers import make_module, make_trainer, small_network


def train(precision, fused, network):
    def optimizer(parameters):
        return torch.optim.SGD(parameters, lr=0.05, fused=fused)

    module = make_module(network=copy.deepcopy(network), optimizer=optimizer)
    callbacks = [ZNorm(log_stats="summary"), GradientMonitor(every_n_steps=5)]
    trainer = make_trainer(accelerator="gpu", precision=precision, max_epochs=2, callbacks=callbacks)
    torch.manual_seed(0)
    trainer.fit(module)
    assert trainer.global_step > 10
    return {name: value.float().cpu() for name, value in module.network.state_dict().items()}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true"])
def test_a_trainer(backend, precision):
    network = small_network()
    for name, value in train(precision, False, network).items():
        assert value.isfinite().all()
        assert (value - network.state_dict()[name]).abs().max() > 0.01


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_a_fused_optimizer_makes_the_same_steps(backend, precision):
    """With 16-mixed, it divides by the scale of the GradScaler itself."""
    network = small_network()
    separate, fused = train(precision, False, network), train(precision, True, network)
    for name, value in separate.items():
        torch.testing.assert_close(fused[name], value, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_fused_optimizers_take_what_attach_gives(backend, dtype, make):
    weight = nn.Parameter(torch.linspace(-1, 2, 5000, device="cuda", dtype=dtype))
    twin = nn.Parameter(weight.detach().clone())
    ours, theirs = make([weight], lr=0.1, fused=True), make([twin], lr=0.1, fused=True)
    handle = attach(ours, ZNorm())
    for seed in range(3):
        torch.manual_seed(seed)
        weight.grad = torch.randn_like(weight) * 1e-3
        twin.grad = weight.grad.clone()
        reference.znorm_([twin.grad], 1e-10)
        ours.step()
        theirs.step()
    handle.remove()
    torch.testing.assert_close(weight, twin)
