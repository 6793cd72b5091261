"""Optimizers that take the place of others in the course of a training, as LBFGS that of Adam."""

import pytest
import torch

from lightning_znorm import GradientMonitor, ZNorm, errors
from tests.helpers import PACKAGES, make_module, make_trainer


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
