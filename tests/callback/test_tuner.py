"""The learning-rate finder and the batch-size scaler, which take the Trainer's callbacks away while they search."""

import copy
from importlib import import_module

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_znorm import GradientStats, GradientTransform, ZNorm
from lightning_znorm._lightning import MisconfigurationException
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
@pytest.mark.parametrize("where", ["bound", "trainer", "both", "both, one callback"])
def test_lr_find_searches_with_znorm_and_applies_it_once(package, where):
    expected = losses_by_hand(package)
    plain = lr_find(package, make_tunable(package))
    module, bound = make_tunable(package), ZNorm()
    in_trainer = {"bound": [], "trainer": [ZNorm()], "both": [ZNorm()], "both, one callback": [bound]}[where]
    if where == "trainer":
        losses = lr_find(package, module, in_trainer)
    else:
        with bound.bound_to(module) as entered:
            assert entered is bound
            losses = lr_find(package, module, in_trainer)
    assert losses == pytest.approx(expected, rel=1e-5)
    assert losses != pytest.approx(plain, rel=1e-2)
    assert "on_before_optimizer_step" not in vars(module)


def test_bound_to_counts_the_applications(monkeypatch):
    calls = []
    monkeypatch.setattr(ZNorm, "transform", lambda self, parameters, grad_scale: calls.append(len(parameters)))
    module = make_tunable()
    trainer = make_trainer(max_steps=3, callbacks=[ZNorm()])
    with ZNorm().bound_to(module):
        trainer.fit(module)
    assert len(calls) == 3
    make_trainer(max_steps=3).fit(module)
    assert len(calls) == 3


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
@pytest.mark.parametrize("bound", [True, False])
def test_batch_size_scaler(package, steps, bound):
    module, (callback, calls) = make_tunable(package), counting_znorm()
    trainer = make_trainer(package, max_epochs=1, callbacks=[] if bound else [callback])
    tuner = import_module(f"{package}.tuner").Tuner(trainer)
    if bound:
        with callback.bound_to(module):
            tuner.scale_batch_size(module, steps_per_trial=steps, max_trials=3)
    else:
        tuner.scale_batch_size(module, steps_per_trial=steps, max_trials=3)
    assert len(calls) == 3 * steps
    assert module.batch_size == 8


def test_the_module_keeps_its_own_hooks():
    class OfTheClass(type(make_tunable())):
        calls = 0

        def on_before_optimizer_step(self, optimizer):
            self.calls += 1

    module = OfTheClass()
    with ZNorm().bound_to(module):
        make_trainer(max_steps=2).fit(module)
    assert module.calls == 2
    assert all(p.grad.std(correction=0) == pytest.approx(1, abs=1e-4) for p in module.parameters())

    module, seen = make_tunable(), []
    own = seen.append
    module.on_before_optimizer_step = own
    with ZNorm().bound_to(module):
        make_trainer(max_steps=2).fit(module)
    assert len(seen) == 2
    assert module.on_before_optimizer_step is own


def test_restored_after_an_error():
    module = make_tunable()
    module.training_step = lambda batch, batch_idx: 1 / 0
    with pytest.raises(ZeroDivisionError), ZNorm().bound_to(module):
        make_trainer(max_steps=1).fit(module)
    assert "on_before_optimizer_step" not in vars(module)


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
    with callback.bound_to(module):
        pass
    assert "on_before_optimizer_step" not in vars(module)


def test_disabled_does_nothing():
    module = make_tunable()
    with ZNorm(enabled=False).bound_to(module):
        losses = lr_find("lightning.pytorch", module)
    assert losses == pytest.approx(lr_find("lightning.pytorch", make_tunable()))


@pytest.mark.parametrize("wrong", [nn.Linear(2, 2), make_trainer(), ZNorm()])
def test_bound_to_something_else(wrong):
    with (
        pytest.raises(TypeError, match="Expected argument `pl_module` to be a LightningModule"),
        ZNorm().bound_to(wrong),
    ):
        pass


def test_bound_twice():
    module = make_tunable()
    with (
        ZNorm().bound_to(module),
        pytest.raises(MisconfigurationException, match="`ZNorm` is bound to this `Tunable` already"),
        ZNorm().bound_to(module),
    ):
        pass
    with ZNorm().bound_to(module):
        pass


@pytest.mark.parametrize(
    ("arguments", "optimizer", "message"),
    [
        ({"exclude": "encoder.*"}, torch.optim.SGD, "the pattern 'encoder.*' matches no parameter"),
        ({}, torch.optim.LBFGS, "does not support the optimizer `LBFGS`"),
    ],
)
def test_the_same_guards(arguments, optimizer, message):
    module = make_tunable(optimizer=optimizer)
    before = copy.deepcopy(module.network.state_dict())
    with pytest.raises(MisconfigurationException) as caught, ZNorm(**arguments).bound_to(module):
        make_trainer(max_steps=1).fit(module)
    assert message in str(caught.value)
    assert all(torch.equal(before[name], value) for name, value in module.network.state_dict().items())


def test_the_same_guards_for_the_trainer():
    from lightning.pytorch.strategies import DDPStrategy

    module = make_tunable()
    strategy = DDPStrategy(process_group_backend="gloo", model_averaging_period=2)
    with pytest.raises(MisconfigurationException, match="model_averaging_period"), ZNorm().bound_to(module):
        make_trainer(max_steps=1, strategy=strategy).fit(module)


class Count(GradientTransform):
    """Counts its calls."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def transform(self, parameters, grad_scale):
        self.calls += 1
        return GradientStats({})


def test_two_transforms_are_both_applied_in_a_search():
    for reverse in (False, True):
        (znorm, calls), count = counting_znorm(), Count()
        callbacks = [count, znorm] if reverse else [znorm, count]
        module = make_tunable()
        trainer = make_trainer(max_epochs=1, callbacks=callbacks)
        import_module("lightning.pytorch.tuner").Tuner(trainer).lr_find(module, num_training=5, update_attr=False)
        assert (len(calls), count.calls) == (5, 5)
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


def test_bound_to_ends_also_after_a_search_that_failed_inside_of_it():
    module, count = make_tunable(), Count()
    step = module.training_step
    module.training_step = lambda batch, batch_idx: 1 / 0
    finder = import_module("lightning.pytorch.callbacks").LearningRateFinder(num_training_steps=5)
    with pytest.raises(ZeroDivisionError), count.bound_to(module):
        make_trainer(max_steps=1, callbacks=[ZNorm(), finder]).fit(module)
    module.training_step = step
    make_trainer(max_steps=2).fit(module)
    assert count.calls == 0


def test_bound_beside_a_callback_of_the_same_kind_does_not_warn(recwarn):
    finder = import_module("lightning.pytorch.callbacks").LearningRateFinder(num_training_steps=5)
    module = make_tunable()
    with ZNorm().bound_to(module):
        make_trainer(max_steps=2, callbacks=[ZNorm(), finder]).fit(module)
    assert not [w for w in recwarn if "ZNorm" in str(w.message)]


def test_a_disabled_one_that_is_bound_does_not_stand_in_the_way():
    (znorm, calls), module = counting_znorm(), make_tunable()
    with ZNorm(enabled=False).bound_to(module):
        lr_find("lightning.pytorch", module, [znorm])
    assert len(calls) > 5


def test_bound_trainings_count_their_skips_anew():
    module = make_tunable()
    module.on_after_backward = lambda: module.network[0].weight.grad.fill_(torch.nan)
    callback = ZNorm(nonfinite="skip", max_skips=3)
    with callback.bound_to(module):
        for _ in range(2):
            make_trainer(max_steps=2).fit(module)
            assert callback.skipped_steps == 2


def test_a_copy_of_a_bound_module_is_bound_to_itself():
    module = make_tunable()
    with ZNorm(min_ndim=2).bound_to(module):
        twin = copy.deepcopy(module)
        make_trainer(max_steps=1).fit(twin)
    stds = [p.grad.std(correction=0).item() for p in twin.parameters()]
    assert stds[0] == pytest.approx(1, abs=1e-4)
    assert stds[1] != pytest.approx(1, abs=0.01)
