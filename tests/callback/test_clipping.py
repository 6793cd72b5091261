"""Clipping by the LightningModule itself, after ZNorm and before it."""

import copy

import pytest
import torch

from lightning_znorm import GradientCentralization, GradientStats, GradientTransform, ZNorm
from tests.helpers import PACKAGES, make_module, make_trainer


def warnings_of(recwarn):
    return [str(w.message) for w in recwarn if "clip" in str(w.message)]


def clipping(package, how):
    class Clipping(type(make_module(package))):
        def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            if how == "clip_gradients":
                self.clip_gradients(optimizer, gradient_clip_val=0.01, gradient_clip_algorithm="norm")
            elif how == "torch":
                torch.nn.utils.clip_grad_norm_(self.parameters(), 0.01)
            elif how == "default":
                super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
            self.norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters()]).item()

    return Clipping()


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("how", ["clip_gradients", "torch"])
def test_in_configure_gradient_clipping(package, how, recwarn):
    module = clipping(package, how)
    make_trainer(package, max_steps=4, callbacks=[ZNorm(start_step=1)]).fit(module)
    assert module.norm == pytest.approx(0.01, rel=1e-3)
    (message,) = warnings_of(recwarn)
    assert "`configure_gradient_clipping` of `Clipping` changes what `ZNorm` returns" in message
    assert "Remove one of the two." in message
    assert not {"configure_gradient_clipping", "clip_gradients"} & {*vars(module)}


@pytest.mark.parametrize(("how", "clip_val"), [("none", None), ("default", None), ("default", 1.0)])
def test_an_override_that_clips_nothing_is_no_clipping(how, clip_val, recwarn):
    make_trainer(max_steps=2, callbacks=[ZNorm()], gradient_clip_val=clip_val).fit(clipping("lightning.pytorch", how))
    messages = warnings_of(recwarn)
    assert len(messages) == (clip_val is not None)
    assert all(message.startswith("`gradient_clip_val=1.0` clips what `ZNorm` returns") for message in messages)


def manual(package="lightning.pytorch"):
    class Manual(type(make_module(package))):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            self.clip_gradients(optimizer, gradient_clip_val=1e-3, gradient_clip_algorithm="norm")
            optimizer.step()

    return Manual()


@pytest.mark.parametrize("package", PACKAGES)
def test_before_a_manual_step(package, recwarn):
    module = manual(package)
    make_trainer(package, max_steps=3, callbacks=[ZNorm()]).fit(module)
    assert module.network[0].weight.grad.std(correction=0).item() == pytest.approx(1, abs=1e-3)
    (message,) = warnings_of(recwarn)
    assert "`self.clip_gradients` in `Manual` has no lasting effect: it runs before `ZNorm`" in message


def test_a_transform_that_keeps_the_norm_may_be_clipped(recwarn):
    make_trainer(max_steps=2, callbacks=[GradientCentralization()]).fit(clipping("lightning.pytorch", "torch"))
    make_trainer(max_steps=2, callbacks=[GradientCentralization()]).fit(manual())
    assert not warnings_of(recwarn)


def test_copies_of_the_module_clip_like_it_and_warn_of_nothing(recwarn):
    module = clipping("lightning.pytorch", "clip_gradients")
    copies = []
    module.on_train_batch_end = lambda *_: copies.append(copy.deepcopy(module))
    make_trainer(max_steps=1, callbacks=[ZNorm()]).fit(module)
    assert len(warnings_of(recwarn)) == 1
    (twin,) = copies
    make_trainer(max_steps=1).fit(twin)
    assert twin.norm == pytest.approx(0.01, rel=1e-3)
    assert len(warnings_of(recwarn)) == 1


class Sign(GradientTransform):
    """Another one that sets the norm."""

    sets_norm = True

    def transform(self, parameters, grad_scale):
        for parameter in parameters:
            parameter.grad.sign_()
        return GradientStats({})


@pytest.mark.parametrize("on_instance", [False, True])
def test_two_transforms_that_set_the_norm_leave_the_module_as_it_was(on_instance):
    module = make_module()
    if on_instance:
        module.clip_gradients = module.clip_gradients
    before = dict(vars(module))
    make_trainer(max_steps=1, callbacks=[ZNorm(), Sign()]).fit(module)
    assert vars(module).get("clip_gradients") == before.get("clip_gradients")
    assert "configure_gradient_clipping" not in vars(module)
