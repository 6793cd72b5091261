"""A module and data that know nothing of comparisons, small enough for hundreds of runs."""

import os
import signal
import time
from pathlib import Path

import lightning.pytorch as pl
import torch
from jsonargparse.typing import Path_fr
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_znorm import ZNorm


class TinyModel(pl.LightningModule):
    """Logistic regression of two noisy classes. `pause` seconds per step, `fail` at a seed's first step."""

    def __init__(self, lr: float = 0.1, width: int = 4, pause: float = 0.0, fail: str = "", optimizer: str = "SGD"):
        super().__init__()
        self.lr, self.pause, self.fail, self.optimizer = lr, pause, fail, optimizer
        self.network = nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 2))

    def training_step(self, batch, batch_idx):
        time.sleep(self.pause)
        if self.fail == "raise" and torch.initial_seed() == 1:
            raise RuntimeError("out of luck")
        if self.fail == "hold" and torch.initial_seed() == 1:
            signal.pause()
        if self.fail == "wait" and torch.initial_seed() == 1:
            while not Path("go").exists():
                time.sleep(0.05)
        if self.fail == "kill" and torch.initial_seed() == 1 and self.trainer.max_epochs > 1:
            os.kill(os.getpid(), signal.SIGKILL)
        loss = self._evaluate(batch, "train")
        return loss * float("nan") if self.fail == "diverge" and torch.initial_seed() == 1 else loss

    def validation_step(self, batch, batch_idx):
        self._evaluate(batch, "val")

    def test_step(self, batch, batch_idx):
        self._evaluate(batch, "test")

    def _evaluate(self, batch, split):
        inputs, labels = batch
        logits = self.network(inputs)
        loss = nn.functional.cross_entropy(logits, labels)
        accuracy = (logits.argmax(1) == labels).float().mean()
        self.log_dict({f"{split}_loss": loss, f"{split}_acc": accuracy}, batch_size=len(labels))
        return loss

    def configure_optimizers(self):
        return getattr(torch.optim, self.optimizer)(self.parameters(), lr=self.lr)


class WithOptions(TinyModel):
    def __init__(self, options: dict | None = None):
        super().__init__(lr=options["learning-rate"])


class Named(TinyModel):
    def __init__(self, optimizer: str = "SGD"):
        super().__init__(optimizer="Adam" if optimizer == "Añadido" else optimizer)


class WithoutTest(TinyModel):
    test_step = pl.LightningModule.test_step


class WithItsOwnZNorm(TinyModel):
    def configure_callbacks(self):
        return [ZNorm()]


class Wide(TinyModel):
    def __init__(self, lr: float = 0.1):
        super().__init__(lr, width=16)


class FromFile(TinyModel):
    def __init__(self, file: Path_fr, more: list[Path_fr]):
        super().__init__(lr=float(file.get_content()) + 0 * float(more[0].get_content()))


class Deaf(TinyModel):
    """Does not listen to the seed."""

    def __init__(self):
        torch.manual_seed(11)
        super().__init__()


class TinyData(pl.LightningDataModule):
    """200 training samples, 60 each for validation and test; shuffled by the global seed."""

    def __init__(self, batch_size: int = 40):
        super().__init__()
        self.batch_size = batch_size

    def _loader(self, split, shuffle=False):
        generator = torch.Generator().manual_seed(sum(map(ord, split)))
        inputs = torch.randn(200 if split == "train" else 60, 6, generator=generator)
        noise = torch.randn(len(inputs), generator=generator)
        labels = (inputs[:, 0] - inputs[:, 1] + 0.7 * noise > 0).long()
        return DataLoader(TensorDataset(inputs, labels), batch_size=self.batch_size, shuffle=shuffle)

    def train_dataloader(self):
        return self._loader("train", shuffle=True)

    def val_dataloader(self):
        return self._loader("val")

    def test_dataloader(self):
        return self._loader("test")


class Unshared(TinyData):
    """Its batches depend on who asks."""

    def train_dataloader(self):
        torch.manual_seed(time.time_ns() % 2**31)
        return self._loader("train", shuffle=True)


class Unshuffled(TinyData):
    def train_dataloader(self):
        return self._loader("train")


class Downloaded(TinyData):
    """Downloads, slowly, what is not there yet, and counts how often."""

    def prepare_data(self):
        count = Path("downloads.txt")
        if not count.exists():
            time.sleep(1.0)
            count.write_text(str(1 + int(count.read_text() if count.exists() else 0)))


class WithoutTestData(TinyData):
    test_dataloader = pl.LightningDataModule.test_dataloader


class Halve(Callback):
    """A gradient transform that this package has never heard of."""

    def __init__(self, by: float = 0.5):
        self.by = by

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        for parameter in pl_module.parameters():
            parameter.grad.mul_(self.by)
