"""`attach` in Lightning Fabric and under a Trainer."""

from importlib import import_module

import pytest
import torch

from lightning_znorm import ZNorm, attach
from lightning_znorm._lightning import MisconfigurationError
from tests.attach.helpers import sgd, stds
from tests.helpers import make_module, make_trainer, small_network

FABRICS = ("lightning.fabric", "lightning_fabric")


@pytest.mark.parametrize("package", FABRICS)
def test_fabric_excludes_by_the_names_of_the_module_itself(package):
    fabric = import_module(package).Fabric(accelerator="cpu", devices=1)
    network = small_network()
    for module in (network, torch.compile(network, backend="eager")):
        model, optimizer = fabric.setup(module, sgd(network))
        with attach(optimizer, ZNorm(exclude="0.*"), model):
            optimizer.zero_grad()
            fabric.backward(model(torch.randn(4, 6)).square().mean())
            optimizer.step()
        assert stds(network)[2:] == pytest.approx([1, 1], abs=1e-4)
        assert stds(network)[:2] != pytest.approx([1, 1], abs=0.01)


@pytest.mark.parametrize("package", FABRICS)
def test_fabric_clips_before(package):
    fabric = import_module(package).Fabric(accelerator="cpu", devices=1)
    network = small_network()
    model, optimizer = fabric.setup(network, sgd(network))
    attach(optimizer, ZNorm())
    fabric.backward(model(torch.randn(4, 6)).square().mean())
    fabric.clip_gradients(model, optimizer, max_norm=1e-3)
    optimizer.step()
    assert stds(network) == pytest.approx([1] * 4, abs=1e-4)


@pytest.mark.parametrize("package", FABRICS)
def test_fabrics_strategies_and_precisions(package):
    fabric = import_module(package).Fabric(accelerator="cpu", devices=1)
    _, optimizer = fabric.setup(*(lambda network: (network, sgd(network)))(small_network()))
    fsdp = import_module(f"{package}.strategies").FSDPStrategy
    strategy = optimizer._strategy
    kind, precision = type(strategy), strategy.precision
    # Lightning itself takes FSDP on accelerators only
    strategy.__class__, strategy._precision = fsdp, None
    with pytest.raises(MisconfigurationError, match="does not support `strategy=FSDPStrategy`"):
        attach(optimizer, ZNorm())
    strategy.__class__, strategy._precision = kind, precision
    optimizer._strategy.precision.precision = "transformer-engine"
    with pytest.raises(MisconfigurationError, match="does not support `precision='transformer-engine'`"):
        attach(optimizer, ZNorm())
    attach(optimizer, ZNorm(enabled=False))


class WithOwnTransform:
    """Attached in `configure_optimizers` of a LightningModule."""

    @staticmethod
    def module():
        def make(parameters):
            optimizer = torch.optim.SGD(parameters, lr=0.1)
            attach(optimizer, ZNorm())
            return optimizer

        return make_module(optimizer=make)


def test_attached_and_a_callback():
    with pytest.raises(MisconfigurationError, match="`ZNorm` is attached to the optimizer `SGD` already"):
        make_trainer(max_steps=1, callbacks=[ZNorm()]).fit(WithOwnTransform.module())


def test_attached_under_a_trainer():
    module = WithOwnTransform.module()
    make_trainer(max_steps=2, gradient_clip_val=1e-3).fit(module)
    assert all(p.grad.std(correction=0) == pytest.approx(1, abs=1e-3) for p in module.parameters())


def test_attached_to_what_the_module_calls_its_optimizers():
    module = make_module()
    module.on_train_start = lambda: attach(module.optimizers(), ZNorm())
    make_trainer(max_steps=2).fit(module)
    assert all(p.grad.std(correction=0) == pytest.approx(1, abs=1e-3) for p in module.parameters())
