"""The LightningDataModule behind all image data sets here."""

import os
from abc import abstractmethod
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from lightning_znorm.errors import DataError, require_count
from lightning_znorm.vision.data._augmentation import Augmentation
from lightning_znorm.vision.data._on_device import DeviceLoader
from lightning_znorm.vision.data._order import Order, find_rank, mix, overfits, share_seed
from lightning_znorm.vision.data._splits import Samples, Split, Tensors

__all__ = ["ImageDataModule"]

_MOST_WORKERS = 8
_READ_AT_ONCE = 256


class ImageDataModule(pl.LightningDataModule):
    """Splits ``train``, ``val`` and ``test`` of images, read by worker processes or kept whole on the device.

    The order of the training batches and their augmentation follow from ``seed``, PyTorch's global seed, the epoch and
    the rank, and from nothing else: not from the number of workers, the device or the network. Under DDP each rank gets
    its part of every split, and in validation and test each sample comes once.

    Args:
        batch_size: Samples per batch.
        augmentation: Of the training split; ``None`` for none.
        num_workers: Worker processes per loader; ``None`` for one per CPU, at most 8.
        on_device: Read everything once, keep it on the Trainer's device as uint8, and augment there: for devices that
            outrun the workers, and for small sets. Without a Trainer, the device is the CPU.
        seed: Seed of the training order (and of random splits).

    """

    def __init__(
        self,
        batch_size: int,
        augmentation: Augmentation | None,
        num_workers: int | None,
        on_device: bool,
        seed: int,
    ) -> None:
        super().__init__()
        self.batch_size = require_count("batch_size", batch_size, least=1)
        self.augmentation = augmentation
        if num_workers is None:
            num_workers = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1, _MOST_WORKERS)
        self.num_workers = require_count("num_workers", num_workers)
        self.on_device = on_device
        self.seed = seed
        self._splits: dict[str, Split] = {}
        self._held: dict[str, Split] = {}

    @abstractmethod
    def load(self, name: str) -> Split:
        """Return the split ``train``, ``val`` or ``test``."""

    def setup(self, stage: str | None = None) -> None:
        """Load the splits that a stage (all, if ``None``) needs, each once."""
        needed = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)}
        for name in needed.get(stage or "", ("train", "val", "test")):
            if name not in self._splits:
                self._splits[name] = self.load(name)

    def train_dataloader(self) -> Any:
        """Training batches, augmented, in a new random order each epoch.

        With ``overfit_batches`` they are the same ones in each epoch, and not augmented.
        """
        if overfits(self.trainer):
            return self._loader("train", self._order("train", pads=True))
        seed = share_seed(self.trainer, (torch.initial_seed() + self.seed) % 2**62)
        epoch = 0 if self.trainer is None else self.trainer.current_epoch
        draws = 0 if self.augmentation is None else self.augmentation.draws
        order = self._order("train", seed=seed, shuffle=True, pads=True, draws=draws)
        generator = torch.Generator().manual_seed(mix(seed, epoch, order.rank))  # of the workers
        return self._loader("train", order, self.augmentation, generator)

    def val_dataloader(self) -> Any:
        """Validation batches."""
        return self._loader("val", self._order("val"))

    def test_dataloader(self) -> Any:
        """Test batches."""
        return self._loader("test", self._order("test"))

    def predict_dataloader(self) -> Any:
        """The test batches."""
        return self._loader("test", self._order("test") if self.on_device else None)

    def _order(self, name: str, **arguments: Any) -> Order:
        return Order(self._splits[name], self.batch_size, *find_rank(self.trainer), **arguments)

    def _loader(
        self,
        name: str,
        order: Order | None,
        augmentation: Augmentation | None = None,
        generator: torch.Generator | None = None,
    ) -> Any:
        if self.on_device and order is not None:
            return DeviceLoader(self._hold(name), order, augmentation)
        takes_samples = order is None or overfits(self.trainer)  # the sampler will be the Trainer's
        return DataLoader(
            Prepared(self._batched(name), augmentation),
            batch_size=self.batch_size if takes_samples else None,
            sampler=None if takes_samples else order,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=self._device.type == "cuda",
            generator=generator,
        )

    def _batched(self, name: str) -> Split:
        """Return a split whose batches are of the usual form: in training, pairs."""
        split = self._splits[name]
        return replace(split, cases=None) if name == "train" else split

    @property
    def _device(self) -> torch.device:
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device

    def _hold(self, name: str) -> Split:
        """Return a split that is on the Trainer's device, to which it is moved once."""
        held = self._held.get(name)
        if held is None or held.mean.device != self._device:
            split = self._batched(name)
            whole = self.read_whole(name, split.samples)
            self._held[name] = held = replace(split, samples=whole).to(self._device)
        return held

    def read_whole(self, name: str, samples: Samples) -> Tensors:
        """Read all samples of a split, by the worker processes, and show the progress."""
        if isinstance(samples, Tensors):
            return samples
        dataset: Any = samples  # a Dataset has no more than these
        loader = DataLoader(dataset, batch_size=_READ_AT_ONCE, num_workers=self.num_workers)
        about = f"Reading {type(self).__name__}'s {name} split"
        whole: Tensors | None = None
        start = 0
        # each batch is let go at once: it holds shared memory and open files of the workers
        for images, targets in tqdm(loader, desc=about, delay=2, mininterval=1, leave=False):
            if whole is None:
                whole = Tensors(*(part.new_empty(len(samples), *part.shape[1:]) for part in (images, targets)))
            whole.images[start : start + len(images)] = images
            whole.targets[start : start + len(images)] = targets
            start += len(images)
        if whole is None:
            raise DataError(f"The {name} split of {type(self).__name__} is empty.")
        return whole


class Prepared(Dataset[tuple[Tensor, ...]]):
    """Whole batches, augmented and standardized; or single samples, standardized."""

    def __init__(self, split: Split, augmentation: Augmentation | None = None) -> None:
        self.split = split
        self.augmentation = augmentation

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: Any) -> tuple[Tensor, ...]:
        if not isinstance(key, (list, tuple)):
            return tuple(part[0] for part in self.split.prepare(torch.tensor([int(key)])))
        indices, draws = key if isinstance(key, tuple) else (key, None)
        draws = None if draws is None else torch.tensor(draws, dtype=torch.float32)
        return self.split.prepare(torch.tensor(indices), self.augmentation, draws)
