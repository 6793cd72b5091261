"""ZNorm inside real Trainers of both Lightning packages."""

import copy
import pickle
from importlib import import_module

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_znorm import GradientStats, GradientTransform, ZNorm
from tests.helpers import FIRST_PACKAGE, PACKAGES, make_module, make_trainer, small_data, small_network, znorm_by_numpy


class Recorder(GradientTransform):
    """Counts its calls and changes nothing."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.parameters = []
        self.asked = []

    def should_transform(self, step, epoch):
        self.asked.append((step, epoch))
        return super().should_transform(step, epoch)

    def transform(self, parameters, grad_scale):
        self.parameters.append(list(parameters))
        return GradientStats({})


def by_hand(network, steps, make_optimizer, accumulate=1, transformed=lambda step, parameter: True, eps=1e-10):
    """The same training in a plain loop with an independent ZNorm."""
    optimizer = make_optimizer(network.parameters())
    batches = iter(DataLoader(small_data(), batch_size=4))
    for step in range(steps):
        optimizer.zero_grad()
        for _ in range(accumulate):
            inputs, targets = next(batches)
            (nn.functional.mse_loss(network(inputs), targets) / accumulate).backward()
        for parameter in network.parameters():
            if transformed(step, parameter):
                normalized = znorm_by_numpy(parameter.grad, eps).astype("float32")
                parameter.grad.copy_(torch.from_numpy(normalized))
        optimizer.step()
    return network


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.1)


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("optimizer", [adam, sgd])
def test_five_steps_equal_a_loop_by_hand(package, optimizer):
    network = small_network()
    expected = by_hand(copy.deepcopy(network), 5, optimizer)
    trainer = make_trainer(package, max_steps=5, callbacks=[ZNorm()])
    trainer.fit(make_module(package, network, optimizer))
    assert trainer.global_step == 5
    for trained, reference in zip(network.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(trained, reference, rtol=1e-5, atol=1e-6)


def test_differs_from_training_without_it():
    plain = small_network()
    normalized = copy.deepcopy(plain)
    make_trainer(max_steps=3).fit(make_module(network=plain))
    make_trainer(max_steps=3, callbacks=[ZNorm()]).fit(make_module(network=normalized))
    assert not torch.equal(plain[0].weight, normalized[0].weight)


def test_fused_and_foreach_optimizers_without_a_scaler():
    results = []
    for kind in ({"foreach": False}, {"foreach": True}, {"fused": True}):
        torch.manual_seed(0)
        network = small_network()
        trainer = make_trainer(max_steps=5, callbacks=[ZNorm()])
        trainer.fit(make_module(network=network, optimizer=lambda p, kind=kind: torch.optim.Adam(p, lr=0.01, **kind)))
        results.append(network[0].weight.detach().clone())
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(results[2], results[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("package", FIRST_PACKAGE)
def test_bf16_mixed_gives_float32_gradients_with_unit_std(package):
    class Check(import_module(package).Callback):
        checked = 0

        def on_before_zero_grad(self, trainer, pl_module, optimizer):
            for parameter in pl_module.parameters():
                if parameter.grad is not None and parameter.numel() > 1:
                    assert parameter.grad.dtype == torch.float32
                    assert parameter.grad.std(correction=0) == pytest.approx(1, abs=1e-5)
                    self.checked += 1

    check = Check()
    trainer = make_trainer(package, max_steps=3, precision="bf16-mixed", callbacks=[ZNorm(), check])
    trainer.fit(make_module(package))
    assert check.checked > 0


@pytest.mark.parametrize("package", FIRST_PACKAGE)
def test_a_single_callback_without_a_list(package):
    trainer = make_trainer(package, max_steps=1, callbacks=ZNorm())
    assert any(isinstance(callback, ZNorm) for callback in trainer.callbacks)
    trainer.fit(make_module(package))


def test_is_a_callback_of_both_packages():
    for package in PACKAGES:
        assert issubclass(ZNorm, import_module(package).Callback)


@pytest.mark.parametrize("accumulate", [1, 2, 5])
def test_called_once_per_optimizer_step(accumulate):
    recorder = Recorder()
    # 10 batches an epoch
    trainer = make_trainer(max_epochs=2, accumulate_grad_batches=accumulate, callbacks=[recorder])
    trainer.fit(make_module())
    steps = 2 * (10 // accumulate)
    assert trainer.global_step == steps
    assert len(recorder.parameters) == steps
    assert recorder.asked == [(step, step // (10 // accumulate)) for step in range(steps)]


def test_accumulated_gradients_are_normalized_as_one():
    network = small_network()
    expected = by_hand(copy.deepcopy(network), 3, adam, accumulate=2)
    make_trainer(max_steps=3, accumulate_grad_batches=2, callbacks=[ZNorm()]).fit(
        make_module(network=network, optimizer=adam)
    )
    for trained, reference in zip(network.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(trained, reference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "chosen"),
    [
        ({"min_ndim": 2}, lambda step, p: p.ndim >= 2),
        ({"exclude": ["*.bias"]}, lambda step, p: p.ndim >= 2),
        ({"exclude": "network.0.*"}, lambda step, p: 3 in p.shape),
        ({"start_step": 2}, lambda step, p: step >= 2),
        ({"stop_step": 3}, lambda step, p: step < 3),
        ({"start_step": 1, "stop_step": 4, "min_ndim": 2}, lambda step, p: 1 <= step < 4 and p.ndim >= 2),
        ({"enabled": False}, lambda step, p: False),
    ],
)
def test_which_parameters_and_when(arguments, chosen):
    network = small_network()
    expected = by_hand(copy.deepcopy(network), 5, adam, transformed=chosen)
    make_trainer(max_steps=5, callbacks=[ZNorm(**arguments)]).fit(make_module(network=network, optimizer=adam))
    for trained, reference in zip(network.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(trained, reference, rtol=1e-5, atol=1e-6)


def test_eps_reaches_the_gradient():
    network = small_network()
    expected = by_hand(copy.deepcopy(network), 3, sgd, eps=10.0)
    make_trainer(max_steps=3, callbacks=[ZNorm(eps=10.0)]).fit(make_module(network=network, optimizer=sgd))
    torch.testing.assert_close(network[0].weight, expected[0].weight, rtol=1e-5, atol=1e-7)


def test_only_the_parameters_of_the_optimizer():
    network = small_network()
    recorder = Recorder()
    module = make_module(network=network, optimizer=lambda parameters: torch.optim.SGD(network[2].parameters(), lr=0.1))
    make_trainer(max_steps=1, callbacks=[recorder]).fit(module)
    assert [id(p) for p in recorder.parameters[0]] == [id(network[2].weight), id(network[2].bias)]


def test_parameters_that_are_made_in_the_first_forward():
    network = nn.Sequential(nn.LazyLinear(5), nn.Tanh(), nn.LazyLinear(3))
    recorder = Recorder(min_ndim=2)
    make_trainer(max_steps=1, callbacks=[recorder]).fit(make_module(network=network))
    assert [p.shape for p in recorder.parameters[0]] == [(5, 6), (3, 5)]


def test_frozen_unused_empty_and_tied_parameters():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
            self.second.weight = self.first.weight
            self.frozen = nn.Linear(6, 6).requires_grad_(False)
            self.unused = nn.Linear(6, 6)
            self.nothing = nn.Parameter(torch.empty(0))
            self.head = nn.Linear(6, 3)

        def forward(self, inputs):
            return self.head(self.frozen(self.second(self.first(inputs)))) + self.nothing.sum()

    network = Net()
    recorder = Recorder()
    make_trainer(max_steps=1, callbacks=[recorder]).fit(make_module(network=network))
    expected = [network.first.weight, network.first.bias, network.second.bias, network.head.weight, network.head.bias]
    assert [id(p) for p in recorder.parameters[0]] == [id(p) for p in expected]


def test_exclude_matches_every_name_of_a_tied_parameter_and_names_inside_compiled_modules():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = torch.compile(nn.Linear(6, 3, bias=False), backend="eager")
            self.alias = nn.Linear(6, 3, bias=False)
            self.alias.weight = self.body.weight
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, inputs):
            return self.body(inputs) * self.scale

    for pattern in ("network.body.weight", "network.alias.*"):
        network, recorder = Net(), Recorder(exclude=[pattern])
        make_trainer(max_steps=1, callbacks=[recorder]).fit(make_module(network=network))
        assert [id(p) for p in recorder.parameters[0]] == [id(network.scale)]


def test_training_step_that_returns_none():
    module = make_module()
    step = module.training_step
    module.training_step = lambda batch, batch_idx: None if batch_idx % 2 else step(batch, batch_idx)
    recorder = Recorder()
    make_trainer(max_epochs=1, callbacks=[recorder]).fit(module)
    assert len(recorder.parameters) == 5


def test_nonfinite_gradient_stays_visible():
    network = small_network()
    seen = []

    class Look(import_module("lightning.pytorch").Callback):
        def on_after_backward(self, trainer, pl_module):
            network[0].weight.grad[0, 0] = torch.inf

        def on_before_zero_grad(self, trainer, pl_module, optimizer):
            if network[0].weight.grad is not None:
                seen.append((network[0].weight.grad[0, 0].item(), network[2].weight.grad.std(correction=0).item()))

    make_trainer(max_steps=2, callbacks=[ZNorm(), Look()]).fit(make_module(network=network))
    assert seen[-1] == (float("inf"), pytest.approx(1, abs=1e-5))


def test_unfrozen_in_the_middle_of_training():
    network = small_network()
    network[0].requires_grad_(False)
    recorder = Recorder()

    class Unfreeze(import_module("lightning.pytorch").Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 2:
                network[0].requires_grad_(True)
                trainer.optimizers[0].add_param_group({"params": list(network[0].parameters())})

    module = make_module(
        network=network,
        optimizer=lambda parameters: torch.optim.SGD([p for p in parameters if p.requires_grad], lr=0.1),
    )
    make_trainer(max_steps=4, callbacks=[recorder, Unfreeze()]).fit(module)
    assert [len(parameters) for parameters in recorder.parameters] == [2, 2, 4, 4]


def test_the_same_callback_in_two_trainings():
    callback = ZNorm()
    for _ in range(2):
        make_trainer(max_steps=2, callbacks=[callback]).fit(make_module())


def test_other_stages_do_not_need_it():
    module = make_module()
    module.test_step = lambda batch, batch_idx: None
    trainer = make_trainer(callbacks=[ZNorm(), ZNorm(min_ndim=2)], precision="16-true")
    trainer.test(module, DataLoader(small_data(), batch_size=4), verbose=False)


def test_repr_shows_the_arguments_alone():
    class Own(ZNorm):
        def __init__(self, gain=2.0, **kwargs):
            super().__init__(**kwargs)
            self.gain = gain

    callback = Own(stop_step=9)
    make_trainer(max_steps=1, callbacks=[callback]).fit(make_module())
    assert repr(callback).startswith(
        "Own(gain=2.0, eps=1e-10, exclude=(), min_ndim=0, center=True, start_step=0, stop_step=9"
    )
    assert "log=" not in repr(callback)


def test_transforms_that_share_an_abstract_base_are_not_the_same():
    class Base(GradientTransform):
        pass

    class One(Base):
        def transform(self, parameters, grad_scale):
            return GradientStats({})

    class Two(One.__base__):
        transform = One.transform

    make_trainer(max_steps=1, callbacks=[One(), Two()]).fit(make_module())
    with pytest.raises(Exception, match="2 enabled `One`"):
        make_trainer(max_steps=1, callbacks=[One(), One()]).fit(make_module())


def test_survives_copy_and_pickle():
    callback = ZNorm(eps=1e-6, exclude=["*.bias"], stop_step=3)
    for twin in (copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))):
        assert repr(twin) == repr(callback)
    assert repr(callback) == (
        "ZNorm(eps=1e-06, exclude=('*.bias',), min_ndim=0, center=True, start_step=0, stop_step=3,"
        " nonfinite='propagate', max_skips=10, log_stats=False, enabled=True)"
    )
