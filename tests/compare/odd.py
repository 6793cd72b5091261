"""Modules and data of other people's habits, each sound under `fit`."""

import math
import os
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from random import SystemRandom

import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, get_worker_info

from lightning_znorm.compare.runs import checkpoint
from tests.compare.tiny import TinyData, TinyModel, Unshuffled


class OneCycle(TinyModel):
    """Needs the number of steps."""

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=self.trainer.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class WarmUp(TinyModel):
    """Divides by the number of epochs but one."""

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_epochs - 1)]


class Resumable(TinyModel):
    """Saves a checkpoint at the start of each epoch, and in the second one waits for its end, unless undisturbed."""

    def on_fit_start(self):
        checkpoint._MIN_SECONDS = checkpoint._MIN_RATIO = 0.0

    def training_step(self, batch, batch_idx):
        if self.current_epoch == 1 and batch_idx == 2 and "UNDISTURBED" not in os.environ:
            Path(self.trainer.default_root_dir, "waiting").touch()
            signal.pause()
        return super().training_step(batch, batch_idx)


class Rare(TinyModel):
    """Logs an expensive metric in every second epoch."""

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        if self.current_epoch % 2 == 1:
            self.log("val_fid_loss", self.trainer.callback_metrics["train_loss"])

    def test_step(self, batch, batch_idx):
        super().test_step(batch, batch_idx)
        self.log("test_fid_loss", 1.0)


class Once(TinyModel):
    """Logs a metric in the first epoch alone."""

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        if self.current_epoch == 0:
            self.log("val_first_loss", 1.0)


class Lazy(TinyModel):
    def __init__(self, lr: float = 0.1):
        super().__init__(lr)
        self.network = nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.LazyLinear(2))


class Limited(TinyModel):
    def __init__(self, limit: float = math.inf):
        super().__init__()


class Moving(TinyModel):
    """Works in a folder of its own."""

    def on_fit_start(self):
        Path("elsewhere").mkdir(exist_ok=True)
        os.chdir("elsewhere")


class Extended(CSVLogger):
    """A logger that the user's module knows."""

    def note(self):
        pass


class Noting(TinyModel):
    def on_fit_start(self):
        self.logger.note()


class Timer(Callback):
    """Is called as one of Lightning's own, and is none."""


class PartlyLazy(TinyModel):
    """Has a layer that is not used before the test."""

    def __init__(self, lr: float = 0.1):
        super().__init__(lr)
        self.later = nn.LazyLinear(2)


class Saving(TinyModel):
    """Brings its checkpoints itself."""

    def configure_callbacks(self):
        return [ModelCheckpoint(dirpath="kept")]


@dataclass(frozen=True)
class Frozen:
    inputs: torch.Tensor
    labels: torch.Tensor

    def __iter__(self):
        return iter((self.inputs, self.labels))

    def to(self, *args, **kwargs):
        return self


def freeze(items):
    return Frozen(*(torch.stack(parts) for parts in zip(*items, strict=True)))


class FrozenBatches(TinyData):
    def _loader(self, split, shuffle=False):
        return DataLoader(super()._loader(split).dataset, self.batch_size, shuffle=shuffle, collate_fn=freeze)


class Destructive(TinyModel):
    """Removes what earlier runs have left."""

    def on_fit_start(self):
        shutil.rmtree("out/runs", ignore_errors=True)


class Silent(TinyModel):
    def validation_step(self, batch, batch_idx):
        pass


class PerStep(TinyModel):
    def validation_step(self, batch, batch_idx):
        self.log("val_acc", 1.0, on_step=True, on_epoch=False)


class Untrained(TinyModel):
    def configure_optimizers(self):
        return None


class Dropping(TinyModel):
    def __init__(self, lr: float = 0.1):
        super().__init__(lr)
        self.network.insert(1, nn.Dropout(0.5))


class Children(TinyModel):
    """Starts a program, as a simulator might be one, and notes down the processes that it has."""

    def on_fit_start(self):
        program = subprocess.Popen(["sleep", "1000"])
        note_process("run", os.getpid())
        note_process("program", program.pid)

    def training_step(self, batch, batch_idx):
        if self.trainer.limit_val_batches != 2:  # not in the trial
            note_process("training", os.getpid())
        return super().training_step(batch, batch_idx)


def note_process(kind, pid):
    folder = os.environ.get("NOTES")
    if folder:
        Path(folder, f"{kind}-{pid}").touch()


def note_worker(number):
    note_process("worker", os.getpid())


class Working(TinyData):
    """Loads by two processes, whose dataset cannot be pickled."""

    def _loader(self, split, shuffle=False):
        dataset = Transformed(super()._loader(split).dataset, lambda item: item)
        return DataLoader(dataset, 4, shuffle=shuffle, num_workers=2, worker_init_fn=note_worker)


class Transformed(torch.utils.data.Dataset):
    def __init__(self, items, transform):
        self.items, self.transform = items, transform

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        assert get_worker_info() is not None
        return self.transform(self.items[index])


class Stream(IterableDataset):
    def __init__(self, items):
        self.items = items

    def __iter__(self):
        while True:
            yield from self.items


class Endless(Stream):
    """Says that it has no length in its own way."""

    def __len__(self):
        raise NotImplementedError


class Unsized(TinyData):
    def train_dataloader(self):
        return DataLoader(Endless(self._loader("train").dataset), self.batch_size)


class EmptyValidation(TinyData):
    def val_dataloader(self):
        return DataLoader(TensorDataset(torch.zeros(0, 6), torch.zeros(0).long()))


class Batch:
    """Tensors that Lightning does not look into."""

    def __init__(self, items):
        self.inputs, self.labels = (torch.stack(parts) for parts in zip(*items, strict=True))

    def __iter__(self):
        return iter((self.inputs, self.labels))

    def to(self, *args, **kwargs):
        return self


class Objects(TinyData):
    def _loader(self, split, shuffle=False):
        return DataLoader(super()._loader(split).dataset, self.batch_size, shuffle=shuffle, collate_fn=Batch)


SALT = SystemRandom().random()


class Salted(Unshuffled):
    """Its data come from what this module has made of itself when it was imported."""

    def train_dataloader(self):
        inputs, labels = self._loader("train").dataset.tensors
        return DataLoader(TensorDataset(inputs + SALT, labels), self.batch_size)


class Drawing(Callback):
    """Does nothing but to draw random numbers."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        torch.rand(3)


class Spoil(Callback):
    """Makes all gradients NaN."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        for parameter in pl_module.parameters():
            parameter.grad.fill_(math.nan)


class Misleading(TinyModel):
    """Its `lr` has no effect."""

    def __init__(self, lr: float = 0.1, step_size: float = 0.05):
        super().__init__(step_size)


class Renamed(TinyModel):
    """Its `lr` has no effect, and its `learning_rate` has."""

    def __init__(self, lr: float = 0.1, learning_rate: float = 0.05):
        super().__init__(learning_rate)


class Several(TinyModel):
    """Two optimizers, with a learning rate each."""

    def __init__(self, lr: float = 0.1, learning_rate: float = 0.2):
        super().__init__(lr)
        self.learning_rate, self.automatic_optimization = learning_rate, False

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
        return loss

    def configure_optimizers(self):
        first, _, last = self.network
        rates = [(first, self.lr), (last, self.learning_rate)]
        return [torch.optim.SGD(layer.parameters(), lr=rate) for layer, rate in rates]


class Split(TinyData):
    """Half of the samples, chosen by a seed, and not shuffled."""

    def __init__(self, batch_size: int = 40, seed: int = 0):
        super().__init__(batch_size)
        self.seed = seed

    def _loader(self, split, shuffle=False):
        inputs, labels = super()._loader(split).dataset.tensors
        chosen = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(self.seed))[: len(inputs) // 2]
        return DataLoader(TensorDataset(inputs[chosen], labels[chosen]), self.batch_size)
