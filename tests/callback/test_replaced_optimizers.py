"""Optimizers that take the place of others in the course of a training, as LBFGS that of Adam."""

import gc
import weakref

import pytest
import torch
from timm.optim.lookahead import Lookahead

from lightning_znorm import GradientMonitor, ZNorm, errors
from tests.helpers import PACKAGES, make_module, make_trainer, recording_logger


def replacing(package, make, at_step):
    module = make_module(package)

    def replace(batch, batch_idx):
        if module.trainer.global_step == at_step and len(module.replaced) == 0:
            module.replaced.append(make(module.parameters()))
            module.trainer.optimizers = module.replaced

    module.replaced = []
    module.on_train_batch_start = replace
    return module


@pytest.mark.parametrize("package", PACKAGES)
def test_lbfgs_is_refused_when_it_comes(package, monkeypatch):
    calls = []
    monkeypatch.setattr(ZNorm, "transform", lambda self, parameters, grad_scale=None: calls.append(1))
    module = replacing(package, lambda parameters: torch.optim.LBFGS(parameters, max_iter=5), at_step=3)
    with pytest.raises(errors.ZNormError, match="`ZNorm` does not support the optimizer `LBFGS` here"):
        make_trainer(package, max_steps=6, callbacks=[ZNorm()]).fit(module)
    assert len(calls) == 3


def test_another_one_is_watched_like_the_first(recwarn):
    """It is transformed, its steps past the Trainer are found, and the training lets go of it in the end."""
    module = replacing("lightning.pytorch", lambda parameters: torch.optim.Adam(parameters), at_step=2)
    module.on_train_end = lambda: module.replaced[0].step()
    make_trainer(max_steps=4, callbacks=[ZNorm()]).fit(module)
    assert all(p.grad.std(correction=0) == pytest.approx(1, abs=1e-3) for p in module.parameters())
    assert any("was bypassed: the optimizer `Adam`" in str(warning.message) for warning in recwarn)
    assert not module.replaced[0]._optimizer_step_pre_hooks


def test_a_monitor_sees_it_from_its_second_step_on():
    module = replacing("lightning.pytorch", lambda parameters: torch.optim.Adam(parameters), at_step=2)
    monitor = GradientMonitor(every_n_steps=1)
    make_trainer(max_steps=4, callbacks=[ZNorm(), monitor]).fit(module)
    assert sorted({(row["step"], row["optimizer"]) for row in monitor.history}) == [(0, 0), (1, 0), (3, 1)]


class Twice(torch.optim.SGD):
    """Evaluates its closure twice per step."""

    def step(self, closure=None):
        closure()
        return super().step(closure)


def test_one_that_evaluates_its_closure_again_is_found_out_in_its_first_step():
    module = replacing("lightning.pytorch", lambda parameters: Twice(parameters, lr=0.1), at_step=2)
    with pytest.raises(errors.ZNormError, match="does not support the optimizer `Twice` here"):
        make_trainer(max_steps=6, callbacks=[ZNorm()]).fit(module)
    assert module.trainer.global_step == 2


@pytest.mark.parametrize("make", [ZNorm, GradientMonitor])
def test_what_was_replaced_is_not_kept_in_memory(make):
    module, made, alive = make_module(), [], []

    def replace():
        module.trainer.optimizers = [torch.optim.Adam(module.parameters())]
        made.append(weakref.ref(module.trainer.optimizers[0]))

    def look():
        gc.collect()
        alive.extend(optimizer() is not None for optimizer in made)

    module.on_train_epoch_start, module.on_train_end = replace, look
    make_trainer(max_epochs=3, callbacks=[make()]).fit(module)
    assert alive == [False, False, True]


def test_one_may_have_the_id_of_another_that_is_gone(monkeypatch):
    """Which CPython gives to a new object where an old one was."""
    from lightning_znorm.hosts import trainer

    monkeypatch.setattr(trainer, "id", lambda optimizer: 7, raising=False)
    module = make_module()
    module.on_train_epoch_start = lambda: setattr(module.trainer, "optimizers", [torch.optim.Adam(module.parameters())])
    make_trainer(max_epochs=3, callbacks=[ZNorm()]).fit(module)
    assert module.trainer.global_step == 30


@pytest.mark.parametrize(
    ("callback", "name", "steps"),
    [
        (ZNorm(log_stats="summary"), "znorm/std_max", [0, 1, 2, 3]),
        (GradientMonitor(every_n_steps=1), "grad/std_max", [0, 1, 3]),
    ],
    ids=["log_stats", "monitor"],
)
def test_the_curve_of_an_only_optimizer_goes_on_under_its_name(callback, name, steps):
    module = replacing("lightning.pytorch", lambda parameters: torch.optim.Adam(parameters), at_step=2)
    logger = recording_logger("lightning.pytorch", prefix=name.partition("/")[0])
    make_trainer(max_steps=4, callbacks=[callback], logger=logger, log_every_n_steps=1).fit(module)
    assert [step for step, row in logger.rows if name in row] == steps


class Bare(torch.optim.Optimizer):
    """Without `Optimizer.__init__`, so that it takes no hooks."""

    def __init__(self, parameters):
        self.param_groups, self.state, self.defaults = [{"params": [*parameters], "lr": 0.1}], {}, {}

    def step(self, closure):
        closure()

    def zero_grad(self):
        for parameter in self.param_groups[0]["params"]:
            parameter.grad = None


def unprepared(parameters):
    """PyTorch prepares timm's Lookahead for hooks at its first `zero_grad()`, a class once and for all: a new class."""
    fresh = type("Fresh", (Lookahead,), {"step": lambda self, closure=None: Lookahead.step(self, closure)})
    return fresh(torch.optim.SGD(parameters, lr=0.01))


def unhooked_by_a_scheduler(parameters):
    """Its class calls the hooks after the first `zero_grad()`, this one with its scheduler never."""
    optimizer = unprepared(parameters)
    return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


@pytest.mark.parametrize("callback", [ZNorm, GradientMonitor])
@pytest.mark.parametrize("make", [Bare, unhooked_by_a_scheduler])
def test_an_optimizer_that_calls_no_hooks_is_trained(callback, make, recwarn):
    module = make_module(optimizer=make)
    make_trainer(max_steps=3, callbacks=[callback(), ZNorm(enabled=callback is not ZNorm)]).fit(module)
    assert module.trainer.global_step == 3
    assert all(p.grad.std(correction=0) == pytest.approx(1, abs=1e-3) for p in module.parameters())
    warned = any("does not record the optimizer" in str(warning.message) for warning in recwarn)
    assert warned == (callback is GradientMonitor)


def test_zero_grad_before_the_scheduler_is_the_remedy():
    def make(parameters):
        optimizer = unprepared(parameters)
        optimizer.zero_grad()
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    monitor = GradientMonitor(every_n_steps=1)
    make_trainer(max_steps=2, callbacks=[ZNorm(), monitor]).fit(make_module(optimizer=make))
    assert {row["step"] for row in monitor.history} == {0, 1}


@pytest.mark.parametrize("znorm_first", [False, True])
def test_a_step_that_pytorch_wraps_late_is_seen_from_the_first(znorm_first):
    module = make_module(optimizer=unprepared)
    module.automatic_optimization = False

    def training_step(batch, batch_idx):
        module.zero_grad()  # not that of the optimizer
        module.manual_backward(module.network(batch[0]).square().mean())
        module.optimizers().step()

    module.training_step = training_step
    monitor = GradientMonitor(every_n_steps=1)
    make_trainer(max_steps=3, callbacks=[ZNorm(), monitor] if znorm_first else [monitor, ZNorm()]).fit(module)
    assert [row["step"] for row in monitor.history if row["ndim"] == 2][::2] == [0, 1, 2]
