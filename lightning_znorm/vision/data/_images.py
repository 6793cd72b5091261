"""The LightningDataModule behind all image data sets here."""

import os
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from tqdm import tqdm

from lightning_znorm.vision.data._arguments import at_least
from lightning_znorm.vision.data._augmentation import Augmentation
from lightning_znorm.vision.data._on_device import DeviceLoader, Resident
from lightning_znorm.vision.data._order import Order, mix

__all__ = ["ImageDataModule", "Samples", "Split", "Tensors"]

_MOST_WORKERS = 8
_READ_AT_ONCE = 256


class Samples(Protocol):
    """Images ``(C, H, W)`` uint8 with their targets: an int64 label, or a mask ``(1, H, W)`` uint8 of 0 and 1."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Tensors:
    """Samples that are in memory.

    Attributes:
        images: ``(N, C, H, W)`` uint8.
        targets: ``(N,)`` int64, or ``(N, 1, H, W)`` uint8.

    """

    images: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.targets[index]


@dataclass(frozen=True)
class Split:
    """Samples, and with what they are standardized.

    Attributes:
        samples: All of one split.
        mean: ``(1, C)``, or ``(len(samples), C)``: that of each image, in units of 0 to 255.
        std: Likewise.

    """

    samples: Samples
    mean: Tensor
    std: Tensor


class ImageDataModule(pl.LightningDataModule):
    """Splits ``train``, ``val`` and ``test`` of images, read by worker processes or kept whole on the device.

    The order of the training batches follows from ``seed``, PyTorch's global seed and the epoch, and from nothing else.
    Under DDP each rank gets its part of it.

    Args:
        batch_size: Samples per batch.
        augmentation: Of the training split; ``None`` for none.
        num_workers: Worker processes per loader; ``None`` for one per CPU, at most 8. What the augmentation draws
            depends on their number.
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
        self.batch_size = at_least("batch_size", batch_size, 1)
        self.augmentation = augmentation
        if num_workers is None:
            num_workers = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1, _MOST_WORKERS)
        self.num_workers = at_least("num_workers", num_workers, 0)
        self.on_device = on_device
        self.seed = seed
        self._splits: dict[str, Split] = {}
        self._resident: dict[str, Resident] = {}

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
        """Training batches, augmented, in a new random order each epoch."""
        trainer, seed = self.trainer, (torch.initial_seed() + self.seed) % 2**62
        shuffle = True
        if trainer is not None:  # the ranks share one order, also where nobody has seeded them alike
            seed = trainer.strategy.broadcast(seed)
            shuffle = not getattr(trainer, "overfit_batches", 0)  # then always the same ones
        order = self._order("train", seed, shuffle)
        if self.on_device:
            return DeviceLoader(self._held("train"), self.batch_size, order, self.augmentation)
        epoch = 0 if trainer is None else trainer.current_epoch
        generator = torch.Generator().manual_seed(mix(seed, epoch, order.rank))  # seeds the workers
        return self._by_workers("train", self.augmentation, sampler=order, generator=generator)

    def val_dataloader(self) -> Any:
        """Validation batches."""
        return self._evaluation("val")

    def test_dataloader(self) -> Any:
        """Test batches."""
        return self._evaluation("test")

    def predict_dataloader(self) -> Any:
        """The test batches, each sample once."""
        return self._evaluation("test", pads=False)

    def _evaluation(self, name: str, pads: bool = True) -> Any:
        if self.on_device:
            order = self._order(name, seed=0, shuffle=False, pads=pads)
            return DeviceLoader(self._held(name), self.batch_size, order)
        return self._by_workers(name)  # a Trainer shares them out

    def _order(self, name: str, seed: int, shuffle: bool, pads: bool = True) -> Order:
        rank, world_size = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        return Order(self._splits[name].samples, seed, rank, world_size, shuffle, pads)

    def _by_workers(self, name: str, augmentation: Augmentation | None = None, **arguments: Any) -> Any:
        return DataLoader(
            Prepared(self._splits[name], augmentation),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=self._device.type == "cuda",
            **arguments,
        )

    @property
    def _device(self) -> torch.device:
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device

    def _held(self, name: str) -> Resident:
        if name not in self._resident or self._resident[name].images.device != self._device:
            self._resident[name] = self._move(name, self._device)
        return self._resident[name]

    def _move(self, name: str, device: torch.device) -> Resident:
        split = self._splits[name]
        whole = self.read_whole(name, split.samples)
        return Resident(whole.images.to(device), whole.targets.to(device), split.mean.to(device), split.std.to(device))

    def read_whole(self, name: str, samples: Samples) -> Tensors:
        """Read all samples of a split, by the worker processes, and show the progress."""
        if isinstance(samples, Tensors):
            return samples
        loader = DataLoader(Raw(samples), batch_size=_READ_AT_ONCE, num_workers=self.num_workers)
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
            raise ValueError(f"The {name} split of {type(self).__name__} is empty.")
        return whole


class Raw(Dataset[tuple[Tensor, Tensor]]):
    """Samples as they are, for a DataLoader."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.samples[index]


class Prepared(Dataset[tuple[Tensor, Tensor]]):
    """Samples, augmented and standardized one by one.

    Args:
        split: What to prepare.
        augmentation: In the form of torchvision's transforms.

    """

    def __init__(self, split: Split, augmentation: Augmentation | None) -> None:
        self.split = split
        self.augmentation = augmentation
        self._transforms: dict[tuple[int, int], v2.Transform] = {}

    def __len__(self) -> int:
        return len(self.split.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, target = self.split.samples[index]
        is_mask = target.ndim > 0
        if self.augmentation is not None:
            height, width = image.shape[-2:]
            if (height, width) not in self._transforms:
                self._transforms[height, width] = self.augmentation.transform(height, width)
            change = self._transforms[height, width]
            if is_mask:
                image, target = change(tv_tensors.Image(image), tv_tensors.Mask(target))
                target = target.as_subclass(Tensor)
            else:
                image = change(tv_tensors.Image(image))
            image = image.as_subclass(Tensor)
        mean, std = (
            figure[index if len(figure) > 1 else 0][:, None, None] for figure in (self.split.mean, self.split.std)
        )
        return (image.float() - mean) / std, target.float() if is_mask else target


def standardization(mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of channels in [0, 1] as a :class:`Split` has them.

    Example::

        >>> standardization((0.5,), (0.2,))
        (tensor([[127.5000]]), tensor([[51.]]))

    """
    return 255 * torch.tensor([mean]), 255 * torch.tensor([std])
