"""`attach` beside a ZNorm of the Trainer, in whatever order, is refused."""

from importlib import import_module

import pytest
import torch

from lightning_znorm import GradientCentralization, ZNorm, attach
from lightning_znorm.errors import ZNormError
from tests.helpers import PACKAGES, make_module, make_trainer


def attaching(package, when, wrapped):
    class Attaching(import_module(package).Callback):
        def attach(self, trainer, pl_module, *_):
            optimizer = pl_module.optimizers() if wrapped else trainer.optimizers[0]
            self.handle = attach(optimizer, ZNorm())

    setattr(Attaching, when, Attaching.attach)
    return Attaching()


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("when", ["on_fit_start", "on_train_start", "on_train_epoch_start", "on_train_batch_start"])
@pytest.mark.parametrize("first", [False, True])
def test_attached_in_the_course_of_a_training(package, wrapped, when, first):
    callbacks = [ZNorm(), attaching(package, when, wrapped)]
    module = make_module(package)
    with pytest.raises(ZNormError, match=r"second one would transform each gradient twice\. Keep one"):
        make_trainer(package, max_steps=2, callbacks=callbacks[::-1] if first else callbacks).fit(module)


def test_attached_to_an_optimizer_that_takes_the_place_of_another():
    module = make_module()

    def replace(batch, batch_idx):
        if batch_idx == 1:
            module.later = torch.optim.SGD(module.parameters(), lr=0.1)
            attach(module.later, ZNorm())
            module.trainer.optimizers = [module.later]

    module.on_train_batch_start = replace
    with pytest.raises(ZNormError, match="A `ZNorm` is attached to the optimizer `SGD` already"):
        make_trainer(max_steps=4, callbacks=[ZNorm()]).fit(module)


def test_what_has_ended_does_not_stand_in_the_way():
    module = make_module()
    make_trainer(max_steps=1, callbacks=[ZNorm()]).fit(module)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    handle = attach(optimizer, ZNorm())
    handle.remove()
    module.configure_optimizers = lambda: optimizer
    make_trainer(max_steps=1, callbacks=[ZNorm()]).fit(module)
    attach(optimizer, ZNorm()).remove()


class Mine(ZNorm):
    """Counts as a ZNorm."""


def test_another_kind_may_stand_beside_it():
    module = make_module()
    make_trainer(max_steps=1, callbacks=[ZNorm(), GradientCentralization()]).fit(module)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    attach(optimizer, Mine())
    attach(optimizer, GradientCentralization())
    with pytest.raises(ZNormError, match="A `ZNorm` is attached to"):
        attach(optimizer, ZNorm())
