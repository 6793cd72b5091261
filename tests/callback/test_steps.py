"""Which call of `step` a hook belongs to: subclasses that call their parent's, and steps that fail."""

import pytest
import torch
from torch import nn

from lightning_znorm import ZNorm, attach
from lightning_znorm._lightning import MisconfigurationError
from tests.callback.test_tuner import make_tunable
from tests.helpers import make_module, make_trainer, recording_logger, small_network


def make_nested():
    """PyTorch wraps both `step`s of the class that this returns, and calls each hook twice per step."""
    torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)

    class Nested(torch.optim.SGD):
        def step(self, closure=None):
            return super().step(closure)

    return Nested


@pytest.mark.parametrize("with_closure", [False, True])
def test_attached_to_an_optimizer_that_calls_its_parents_step(with_closure):
    network = small_network()
    optimizer = make_nested()(network.parameters(), lr=0.01)
    handle = attach(optimizer, ZNorm(stop_step=3))
    stds, raw = [], []
    for _ in range(4):

        def closure():
            optimizer.zero_grad()
            loss = network(torch.ones(2, 6)).square().mean()
            loss.backward()
            raw.append(network[0].weight.grad.std(correction=0).item())
            return loss

        if with_closure:
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
        stds.append(network[0].weight.grad.std(correction=0).item())
        if handle.stats is not None:
            assert handle.stats.std[0].item() == pytest.approx(raw[-1], rel=1e-4)
    assert stds[:3] == pytest.approx([1, 1, 1], abs=1e-4)
    assert stds[3] != pytest.approx(1, abs=0.01)
    assert handle.step == 4


def test_in_a_trainer_an_optimizer_that_calls_its_parents_step(recwarn):
    nested = make_nested()
    module = make_module(optimizer=lambda parameters: nested(parameters, lr=0.01))
    make_trainer(max_steps=3, callbacks=[ZNorm()]).fit(module)
    assert not [w for w in recwarn if "ZNorm" in str(w.message)]


@pytest.mark.parametrize("first", ["parent", "own"])
def test_in_a_trainer_a_second_evaluation_after_the_parents_step(first):
    class Again(torch.optim.SGD):
        def step(self, closure=None):
            if first == "own":
                closure()
            loss = super().step(closure)
            if first == "parent":
                closure()
            return loss

    torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)
    with pytest.raises(MisconfigurationError, match="optimizer `Again`"):
        make_trainer(max_steps=3, callbacks=[ZNorm()]).fit(
            make_module(optimizer=lambda parameters: Again(parameters, lr=0.01))
        )


def failing_once(callback, at):
    transform, calls = callback.transform, []

    def fails(*arguments):
        calls.append(1)
        if len(calls) == at:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return transform(*arguments)

    callback.transform = fails
    return callback, calls


@pytest.mark.parametrize("mode", ["power", "binsearch"])
def test_batch_size_scaler_goes_on_after_running_out_of_memory_in_the_transform(mode):
    from lightning.pytorch.tuner import Tuner

    callback, calls = failing_once(ZNorm(), at=4)
    module = make_tunable()
    Tuner(make_trainer(max_epochs=1, callbacks=[callback])).scale_batch_size(
        module, mode=mode, steps_per_trial=1, max_trials=5
    )
    assert len(calls) >= 4
    make_trainer(max_steps=1, callbacks=[callback]).fit(module)


def test_a_step_that_is_tried_again_after_an_error():
    callback, _ = failing_once(ZNorm(), at=1)
    module = make_module()
    module.automatic_optimization = False

    def training_step(batch, batch_idx):
        optimizer = module.optimizers()

        def closure():
            optimizer.zero_grad()
            module.manual_backward(nn.functional.mse_loss(module.network(batch[0]), batch[1]))

        try:
            optimizer.step(closure)
        except RuntimeError:
            optimizer.step(closure)

    module.training_step = training_step
    make_trainer(max_steps=2, callbacks=[callback]).fit(module)
    assert module.network[0].weight.grad.std(correction=0) == pytest.approx(1, abs=1e-4)


def test_exclude_holds_for_parameters_that_are_added_during_training():
    module = make_module()

    def on_train_batch_start(batch, batch_idx):
        if batch_idx == 1:
            module.network.append(nn.Linear(3, 3))
            module.trainer.optimizers[0].add_param_group({"params": list(module.network[3].parameters())})

    module.on_train_batch_start = on_train_batch_start
    make_trainer(max_steps=3, callbacks=[ZNorm(exclude="*bias")]).fit(module)
    assert module.network[3].weight.grad.std(correction=0) == pytest.approx(1, abs=1e-4)
    assert module.network[3].bias.grad.std(correction=0) != pytest.approx(1, abs=0.01)


def test_summaries_of_several_optimizers_are_told_apart():
    logger, module = recording_logger("lightning.pytorch"), make_module()
    module.automatic_optimization = False

    def training_step(batch, batch_idx):
        for optimizer in module.optimizers():
            optimizer.zero_grad()
            module.manual_backward(nn.functional.mse_loss(module.network(batch[0]), batch[1]))
            optimizer.step()

    module.training_step = training_step
    module.configure_optimizers = lambda: [
        torch.optim.SGD(module.network[layer].parameters(), lr=0.01) for layer in (0, 2)
    ]
    make_trainer(max_steps=2, logger=logger, log_every_n_steps=1, callbacks=[ZNorm(log_stats="summary")]).fit(module)
    names = [sorted(name for name in row if name.endswith("std_max")) for _, row in logger.rows]
    assert names == [["znorm/optimizer_0/std_max"], ["znorm/optimizer_1/std_max"]]
