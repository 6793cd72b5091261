"""Manual optimization: several optimizers, and steps past the Trainer."""

from importlib import import_module

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_znorm import ZNorm
from tests.helpers import FIRST_PACKAGE, PACKAGES, make_module, make_trainer, normalize_by_numpy, small_data


def gan(package, znorm_by_hand):
    pl = import_module(package)

    class GAN(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.generator = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 6))
            self.discriminator = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))

        def judge(self, samples, real):
            logits = self.discriminator(samples)
            return nn.functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)))

        def training_step(self, batch, batch_idx):
            real = batch[0]
            noise = torch.linspace(-1, 1, 2 * len(real)).reshape(len(real), 2) * (batch_idx + 1)
            optimizers = self.optimizers()
            self.toggle_optimizer(optimizers[0])
            loss = self.judge(self.generator(noise), real=True)
            optimizers[0].zero_grad()
            self.manual_backward(loss)
            optimizers[0].step()
            self.untoggle_optimizer(optimizers[0])
            loss = self.judge(real, real=True) + self.judge(self.generator(noise).detach(), real=False)
            optimizers[1].zero_grad()
            self.manual_backward(loss)
            optimizers[1].step()

        def on_before_optimizer_step(self, optimizer):
            if znorm_by_hand:
                normalize_by_numpy(optimizer)

        def configure_optimizers(self):
            return (
                torch.optim.Adam(self.generator.parameters(), lr=0.01),
                torch.optim.SGD(self.discriminator.parameters(), lr=0.01, momentum=0.5),
            )

        def train_dataloader(self):
            return DataLoader(small_data(), batch_size=4)

    torch.manual_seed(5)
    return GAN()


@pytest.mark.parametrize("package", PACKAGES)
def test_a_gan_with_two_optimizers(package):
    modules = []
    for by_hand in (False, True):
        module = gan(package, by_hand)
        trainer = make_trainer(package, max_epochs=2, callbacks=[] if by_hand else [ZNorm()])
        trainer.fit(module)
        assert trainer.global_step == 40
        modules.append(module)
    for one, other in zip(modules[0].parameters(), modules[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_exclude_is_matched_against_the_whole_module_whatever_the_optimizers():
    module = gan("lightning.pytorch", znorm_by_hand=False)
    make_trainer(max_epochs=1, callbacks=[ZNorm(exclude=["discriminator.*"])]).fit(module)
    assert all(p.grad.std(correction=0) == pytest.approx(1, abs=1e-4) for p in module.generator.parameters())
    assert all(p.grad.std(correction=0) < 0.9 for p in module.discriminator.parameters() if p.numel() > 1)


def manual_module(step, package="lightning.pytorch"):
    module = make_module(package)
    module.automatic_optimization = False

    def training_step(batch, batch_idx):
        optimizer = module.optimizers(use_pl_optimizer=step != "raw")
        optimizer.zero_grad()
        module.manual_backward(nn.functional.mse_loss(module.network(batch[0]), batch[1]))
        if step != "every other" or batch_idx % 2:
            optimizer.step()

    module.training_step = training_step
    return module


@pytest.mark.parametrize("package", FIRST_PACKAGE)
def test_a_raw_optimizer_in_manual_mode_warns_at_its_first_step(package):
    with pytest.warns(UserWarning, match=r"`ZNorm` was bypassed: .*`SGD`.*use_pl_optimizer=False") as caught:
        make_trainer(package, max_epochs=1, limit_train_batches=3, callbacks=[ZNorm()]).fit(
            manual_module("raw", package)
        )
    messages = [str(w.message) for w in caught if "`ZNorm`" in str(w.message)]
    assert len([message for message in messages if "bypassed" in message]) == 1
    assert len([message for message in messages if "never ran" in message]) == 1


def test_only_one_of_two_optimizers_bypassed_warns_too():
    module = gan("lightning.pytorch", znorm_by_hand=False)
    optimizers = module.optimizers
    module.optimizers = lambda: [optimizers()[0], optimizers()[1].optimizer]
    with pytest.warns(UserWarning, match="bypassed: the optimizer `SGD`"):
        make_trainer(max_epochs=1, callbacks=[ZNorm()]).fit(module)


@pytest.mark.parametrize("step", ["each", "every other"])
def test_steps_through_the_trainer_do_not_warn(step, recwarn):
    trainer = make_trainer(max_epochs=1, callbacks=[ZNorm()])
    trainer.fit(manual_module(step))
    assert trainer.global_step == (10 if step == "each" else 5)
    assert not [w for w in recwarn if "ZNorm" in str(w.message)]
