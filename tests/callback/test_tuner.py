"""The learning-rate finder and the batch-size scaler, which take the Trainer's callbacks away while they search."""

import copy
import functools
import gc
import weakref
from importlib import import_module
from math import nan

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_znorm import GradientStats, GradientTransform, ZNorm
from lightning_znorm._lightning import MisconfigurationError
from tests.helpers import PACKAGES, make_trainer, normalize_by_numpy, small_data, small_network


def make_tunable(package="lightning.pytorch", optimizer=torch.optim.SGD):
    pl = import_module(package)

    class Tunable(pl.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(4)
            self.network = small_network()
            self.lr, self.batch_size = 0.01, 2

        def training_step(self, batch, batch_idx):
            loss = nn.functional.mse_loss(self.network(batch[0]), batch[1])
            self.log("train_loss", loss)
            return loss

        def configure_optimizers(self):
            return optimizer(self.network.parameters(), lr=self.lr)

        def train_dataloader(self):
            return DataLoader(small_data(160), batch_size=self.batch_size)

    return Tunable()


def lr_find(package, module, callbacks=()):
    trainer = make_trainer(package, max_epochs=1, callbacks=list(callbacks), enable_checkpointing=True)
    tuner = import_module(f"{package}.tuner").Tuner(trainer)
    return tuner.lr_find(module, min_lr=1e-5, max_lr=10, num_training=30, update_attr=False).results["loss"]


def counting_znorm():
    callback, calls = ZNorm(), []
    transform = callback.transform
    callback.transform = lambda *arguments: calls.append(1) or transform(*arguments)
    return callback, calls


def losses_by_hand(package):
    module = make_tunable(package)
    module.on_before_optimizer_step = normalize_by_numpy
    return lr_find(package, module)


@pytest.mark.parametrize("package", PACKAGES)
def test_lr_find_searches_with_znorm_and_applies_it_once(package):
    expected = losses_by_hand(package)
    plain = lr_find(package, make_tunable(package))
    module = make_tunable(package)
    losses = lr_find(package, module, [ZNorm()])
    assert losses == pytest.approx(expected, rel=1e-5)
    assert losses != pytest.approx(plain, rel=1e-2)
    assert "on_before_optimizer_step" not in vars(module)


@pytest.mark.parametrize("package", PACKAGES)
def test_training_after_the_search_equals_training_without_one(package):
    """The search leaves nothing behind: neither a second transform nor a hook nor a count."""
    weights = []
    for search in (False, True):
        module, callback = make_tunable(package), ZNorm(start_step=1, stop_step=5)
        trainer = make_trainer(package, max_steps=8, callbacks=[callback])
        if search:
            tuner = import_module(f"{package}.tuner").Tuner(trainer)
            tuner.lr_find(module, num_training=20, update_attr=False)
        trainer.fit(module)
        weights.append(module.network[0].weight.detach().clone())
    torch.testing.assert_close(weights[0], weights[1])


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("name", ["LearningRateFinder", "BatchSizeFinder"])
@pytest.mark.parametrize("first", [True, False])
def test_finders_as_callbacks(package, name, first):
    kinds = {"LearningRateFinder": {"num_training_steps": 15}, "BatchSizeFinder": {"max_trials": 2}}
    finder = getattr(import_module(f"{package}.callbacks"), name)(**kinds[name])
    callback, calls = counting_znorm()
    trainer = make_trainer(
        package, max_steps=4, callbacks=[callback, finder] if first else [finder, callback], log_every_n_steps=1
    )
    module = make_tunable(package)
    trainer.fit(module)
    assert len(calls) == {"LearningRateFinder": 15 + 4, "BatchSizeFinder": 2 * 3 + 4}[name]
    assert "on_before_optimizer_step" not in vars(module)


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("steps", [1, 3])
def test_batch_size_scaler(package, steps):
    module, (callback, calls) = make_tunable(package), counting_znorm()
    trainer = make_trainer(package, max_epochs=1, callbacks=[callback])
    import_module(f"{package}.tuner").Tuner(trainer).scale_batch_size(module, steps_per_trial=steps, max_trials=3)
    assert len(calls) == 3 * steps
    assert module.batch_size == 8


@pytest.mark.parametrize("on_instance", [False, True])
def test_the_module_keeps_its_own_hook(on_instance):
    seen = []

    class OfTheClass(type(make_tunable())):
        def on_before_optimizer_step(self, optimizer):
            seen.append(self.network[0].weight.grad.std(correction=0).item())

    module = OfTheClass()
    own = functools.partial(OfTheClass.on_before_optimizer_step, module)
    if on_instance:
        module.on_before_optimizer_step = own
    lr_find("lightning.pytorch", module, [ZNorm()])
    assert len(seen) > 5
    assert seen == pytest.approx([1] * len(seen), abs=1e-3)
    assert vars(module).get("on_before_optimizer_step") is (own if on_instance else None)


def test_a_search_that_fails_leaves_later_trainers_alone():
    """Lightning calls no hook of the callback then; its hook in the module does nothing under another Trainer."""
    module, callback = make_tunable(), ZNorm()
    step, calls = module.training_step, []

    def fails_later(batch, batch_idx):
        calls.append(1)
        return 1 / 0 if len(calls) == 5 else step(batch, batch_idx)

    module.training_step = fails_later
    with pytest.raises(ZeroDivisionError):
        lr_find("lightning.pytorch", module, [callback])
    make_trainer(max_steps=2).fit(module)
    stds = [p.grad.std(correction=0).item() for p in module.parameters()]
    assert stds != pytest.approx([1] * 4, abs=0.01)

    module.network.load_state_dict(make_tunable().network.state_dict())
    assert lr_find("lightning.pytorch", module, [callback]) == pytest.approx(losses_by_hand("lightning.pytorch"))
    assert "on_before_optimizer_step" not in vars(module)


def failing_search(callback, optimizer=None):
    """A module whose first search fails in its third batch, and whose optimizer is one of its own if there is one."""
    module = make_tunable()
    step, batches = module.training_step, []

    def fails_once(batch, batch_idx):
        batches.append(1)
        return 1 / 0 if len(batches) == 3 else step(batch, batch_idx)

    module.training_step = fails_once
    if optimizer is not None:
        module.configure_optimizers = lambda: optimizer(module.network.parameters())
    with pytest.raises(ZeroDivisionError):
        lr_find("lightning.pytorch", module, [callback])
    return module


@pytest.mark.parametrize("same", [True, False], ids=["same_callback", "another_callback"])
def test_an_optimizer_that_outlives_a_failed_search_can_be_trained_with(same):
    made = []
    callback = ZNorm()
    module = failing_search(callback, lambda parameters: (made or made.append(torch.optim.SGD(parameters)) or made)[0])
    make_trainer(max_steps=2, callbacks=[callback if same else ZNorm()]).fit(module)
    assert [p.grad.std(correction=0).item() for p in module.parameters()] == pytest.approx([1] * 4, abs=1e-3)
    assert not {"on_before_optimizer_step", "clip_gradients", "configure_gradient_clipping"} & {*vars(module)}
    assert not made[0]._optimizer_step_pre_hooks


def test_a_failed_search_keeps_nothing_alive():
    module = weakref.ref(failing_search(ZNorm()))
    gc.collect()
    assert module() is None


def test_disabled_does_nothing():
    module = make_tunable()
    losses = lr_find("lightning.pytorch", module, [ZNorm(enabled=False)])
    assert losses == pytest.approx(lr_find("lightning.pytorch", make_tunable()))


class Count(GradientTransform):
    """Counts its calls."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def transform(self, parameters, grad_scale):
        self.calls += 1
        return GradientStats({})


@pytest.mark.parametrize("order", [["znorm", "count"], ["count", "znorm"]])
def test_two_transforms_are_both_applied_in_a_search_in_the_order_of_the_callbacks(order):
    callbacks = {"znorm": ZNorm(), "count": Count()}
    calls = []
    for name, callback in callbacks.items():
        transform = callback.transform
        callback.transform = lambda *arguments, n=name, f=transform: calls.append(n) or f(*arguments)
    module = make_tunable()
    trainer = make_trainer(max_epochs=1, callbacks=[callbacks[name] for name in order])
    import_module("lightning.pytorch.tuner").Tuner(trainer).lr_find(module, num_training=5, update_attr=False)
    assert calls == order * 5
    assert "on_before_optimizer_step" not in vars(module)


def test_copies_of_the_module_that_a_callback_makes_are_not_bound():
    package = import_module("lightning.pytorch.callbacks")

    class Copy(package.Callback):
        def on_train_start(self, trainer, pl_module):
            self.copy = copy.deepcopy(pl_module)

    keep = Copy()
    finder = package.LearningRateFinder(num_training_steps=5)
    make_trainer(max_steps=1, callbacks=[ZNorm(), finder, keep]).fit(make_tunable())
    make_trainer(max_steps=1).fit(keep.copy)
    stds = [p.grad.std(correction=0).item() for p in keep.copy.parameters()]
    assert stds != pytest.approx([1] * 4, abs=0.01)


@pytest.mark.parametrize("finder_first", [False, True])
def test_the_search_refuses_what_the_training_would(finder_first):
    module = make_tunable(optimizer=torch.optim.LBFGS)
    before = copy.deepcopy(module.network.state_dict())
    finder = import_module("lightning.pytorch.callbacks").LearningRateFinder(num_training_steps=5)
    callbacks = [finder, ZNorm()] if finder_first else [ZNorm(), finder]
    with pytest.raises(MisconfigurationError, match="does not support the optimizer `LBFGS`"):
        make_trainer(max_steps=1, callbacks=callbacks).fit(module)
    assert all(torch.equal(before[name], value) for name, value in module.network.state_dict().items())


def test_skips_of_the_search_do_not_count():
    module = make_tunable()
    module.on_after_backward = lambda: module.trainer.global_step == 2 and module.network[0].weight.grad.fill_(nan)
    callback = ZNorm(nonfinite="skip")
    finder = import_module("lightning.pytorch.callbacks").LearningRateFinder(num_training_steps=5)
    make_trainer(max_steps=4, callbacks=[callback, finder], enable_checkpointing=True).fit(module)
    assert callback.skipped_steps == 1
