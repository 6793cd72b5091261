"""Ways to optimize and callbacks of Lightning beside ZNorm, each against an independent ZNorm in the module's hook."""

import copy
from importlib import import_module

import pytest
import torch
from torch import nn

from lightning_znorm import ZNorm
from tests.helpers import (
    FIRST_PACKAGE,
    PACKAGES,
    make_module,
    make_trainer,
    normalize_by_numpy,
    precision_arguments,
    small_network,
)


def trained(package, network, by_callback, callbacks=(), change_module=lambda module: None, **trainer):
    module = make_module(package, network, lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9))
    change_module(module)
    if not by_callback:
        module.on_before_optimizer_step = normalize_by_numpy
    own = [ZNorm()] if by_callback else []
    made = make_trainer(package, callbacks=[*own, *(make() for make in callbacks)], **{"max_epochs": 4, **trainer})
    made.fit(module)
    return made


def assert_same_training(package="lightning.pytorch", make_network=small_network, **arguments):
    torch.manual_seed(1)
    network = make_network()
    first, reference = copy.deepcopy(network), copy.deepcopy(network)
    steps = trained(package, network, True, **arguments).global_step
    assert steps == trained(package, reference, False, **arguments).global_step > 0
    for one, other in zip(network.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert any(not torch.equal(*pair) for pair in zip(network.parameters(), first.parameters(), strict=True))


def of_package(package, name, **arguments):
    return lambda: getattr(import_module(f"{package}.callbacks"), name)(**arguments)


@pytest.mark.parametrize("package", PACKAGES)
def test_stochastic_weight_averaging(package):
    callbacks = [of_package(package, "StochasticWeightAveraging", swa_lrs=0.01, swa_epoch_start=2)]
    assert_same_training(package, callbacks=callbacks)


def test_stochastic_weight_averaging_with_its_extra_epoch_for_batch_norm():
    def network():
        # without a bias, whose true gradient would be 0: two ways to round make two noises of unit size
        return nn.Sequential(nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))

    callbacks = [of_package("lightning.pytorch", "StochasticWeightAveraging", swa_lrs=0.01, swa_epoch_start=2)]
    assert_same_training(make_network=network, callbacks=callbacks)


@pytest.mark.parametrize("package", FIRST_PACKAGE)
def test_weight_averaging(package):
    assert_same_training(package, callbacks=[of_package(package, "EMAWeightAveraging", decay=0.5)])


@pytest.mark.parametrize("package", FIRST_PACKAGE)
def test_gradient_accumulation_scheduler(package):
    schedule = {0: 1, 1: 2, 2: 5}
    assert_same_training(package, callbacks=[of_package(package, "GradientAccumulationScheduler", scheduling=schedule)])


@pytest.mark.parametrize("package", FIRST_PACKAGE)
def test_fast_dev_run(package):
    assert_same_training(package, fast_dev_run=3)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_gradient_clipping_comes_after_it(algorithm):
    assert_same_training(gradient_clip_val=0.5, gradient_clip_algorithm=algorithm)


def test_training_step_that_returns_none():
    def change(module):
        step = module.training_step
        module.training_step = lambda batch, batch_idx: None if batch_idx % 3 == 1 else step(batch, batch_idx)

    assert_same_training(change_module=change)
    assert_same_training(change_module=change, accumulate_grad_batches=2)


def test_create_graph():
    def change(module):
        module.backward = lambda loss: loss.backward(create_graph=True)

    assert_same_training(change_module=change)


def test_a_gradient_penalty_on_gradients_with_a_graph():
    """The gradient that the optimizer gets has a graph of its own; editing it in place leaves the penalty's alone."""

    def change(module):
        def training_step(batch, batch_idx):
            inputs = batch[0].requires_grad_()
            outputs = module.network(inputs)
            (slope,) = torch.autograd.grad(outputs.sum(), inputs, create_graph=True)
            return nn.functional.mse_loss(outputs, batch[1]) + slope.square().sum()

        module.training_step = training_step
        module.backward = lambda loss: loss.backward(create_graph=True)

    assert_same_training(change_module=change)


def test_tied_weights():
    def network():
        first, second = nn.Linear(6, 6), nn.Linear(6, 6)
        second.weight = first.weight
        return nn.Sequential(first, nn.Tanh(), second, nn.Linear(6, 3))

    assert_same_training(make_network=network)


def test_parameters_that_get_a_gradient_in_some_steps_only():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.paths = nn.ModuleList([nn.Linear(6, 3), nn.Linear(6, 3)])
            self.calls = 0

        def forward(self, inputs):
            self.calls += 1
            return self.paths[self.calls % 2](inputs)

    assert_same_training(make_network=Net)


def test_frozen_and_unfrozen_by_lightnings_own_callback():
    class Unfreeze(import_module("lightning.pytorch.callbacks").BaseFinetuning):
        def freeze_before_training(self, pl_module):
            self.freeze(pl_module.network[0])

        def finetune_function(self, pl_module, epoch, optimizer):
            if epoch == 2:
                self.unfreeze_and_add_param_group(pl_module.network[0], optimizer)

    def change(module):
        module.configure_optimizers = lambda: torch.optim.SGD(
            [p for p in module.parameters() if p.requires_grad], lr=0.02
        )

    assert_same_training(callbacks=[Unfreeze], change_module=change)


@pytest.mark.parametrize("whole", [True, False])
def test_compiled_modules(whole):
    def network():
        made = small_network()
        if not whole:
            made[0] = torch.compile(made[0], backend="eager")
        return made

    assert_same_training(make_network=network)
    torch.manual_seed(1)
    module = make_module(network=network())
    fitted = torch.compile(module, backend="eager") if whole else module
    trainer = make_trainer(max_steps=2, callbacks=[ZNorm(exclude=["network.0.weight"])])
    trainer.fit(fitted)
    stds = [parameter.grad.std(correction=0).item() for parameter in module.parameters()]
    assert stds[0] != pytest.approx(1, abs=0.01)
    assert stds[1:] == pytest.approx([1, 1, 1], abs=1e-5)


@pytest.mark.parametrize("package", FIRST_PACKAGE)
@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_resume_in_the_middle_of_a_schedule(package, precision, tmp_path):
    """ZNorm's start and stop, the learning rate, the momentum and the GradScaler go on as if nothing had happened."""

    def trainer(epochs):
        callbacks = [ZNorm(start_step=2, stop_step=9, nonfinite="skip")]
        scaler = {"init_scale": 2.0**10, "growth_interval": 3}
        arguments = precision_arguments(package, precision, **scaler)
        return make_trainer(package, max_epochs=epochs, limit_train_batches=4, callbacks=callbacks, **arguments)

    def module(network):
        made = make_module(package, network)
        optimizer = torch.optim.Adam(made.parameters(), lr=0.02, fused=precision == "16-mixed")
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=12)
        made.configure_optimizers = lambda: ([optimizer], [{"scheduler": scheduler, "interval": "step"}])
        return made

    whole = small_network()
    half = copy.deepcopy(whole)
    trainer(3).fit(module(whole))
    interrupted = trainer(1)
    interrupted.fit(module(half))
    interrupted.save_checkpoint(tmp_path / "half.ckpt")
    resumed = small_network()
    trainer(3).fit(module(resumed), ckpt_path=tmp_path / "half.ckpt")
    for one, other in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(one, other)


def test_lets_go_of_the_optimizers():
    module = make_module()
    trainer = make_trainer(max_steps=2, callbacks=[ZNorm()])
    trainer.fit(module)
    assert not trainer.optimizers or not trainer.optimizers[0]._optimizer_step_post_hooks


def test_a_module_that_calls_the_closure_itself_and_steps_now_and_then(recwarn):
    """Accumulation in the module's own `optimizer_step`, as Lightning's documentation shows it."""
    module = make_module()

    def optimizer_step(epoch, batch_idx, optimizer, optimizer_closure):
        if batch_idx % 2:
            optimizer.step(closure=optimizer_closure)
        else:
            optimizer_closure()

    module.optimizer_step = optimizer_step
    make_trainer(max_epochs=1, callbacks=[ZNorm()]).fit(module)
    assert not [w for w in recwarn if "ZNorm" in str(w.message)]
    assert all(p.grad.std(correction=0) == pytest.approx(1, abs=1e-4) for p in module.parameters())
