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

__all__ = ["ImageDataModule", "Samples", "Split", "Tensors"]

_MOST_WORKERS = 8


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

    The order of the training batches comes from a generator of its own, seeded by ``seed`` and PyTorch's global seed.

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
        seed = (torch.initial_seed() + self.seed) % 2**63
        if self.trainer is not None:  # the ranks share one order, also where nobody has seeded them alike
            seed = self.trainer.strategy.broadcast(seed)
        generator = torch.Generator().manual_seed(seed)
        return self._loader("train", self.augmentation, generator)

    def val_dataloader(self) -> Any:
        """Validation batches."""
        return self._loader("val")

    def test_dataloader(self) -> Any:
        """Test batches."""
        return self._loader("test")

    def predict_dataloader(self) -> Any:
        """The test batches."""
        return self._loader("test")

    def _loader(
        self, name: str, augmentation: Augmentation | None = None, generator: torch.Generator | None = None
    ) -> Any:
        if self.on_device:
            device, rank, world_size = torch.device("cpu"), 0, 1
            if self.trainer is not None:
                device = self.trainer.strategy.root_device
                rank, world_size = self.trainer.global_rank, self.trainer.world_size
            if name not in self._resident or self._resident[name].images.device != device:
                self._resident[name] = self._move(name, device)
            return DeviceLoader(self._resident[name], self.batch_size, augmentation, generator, rank, world_size)
        return DataLoader(
            Prepared(self._splits[name], augmentation),
            batch_size=self.batch_size,
            shuffle=generator is not None,
            generator=generator,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def _move(self, name: str, device: torch.device) -> Resident:
        split = self._splits[name]
        whole = self.read_whole(name, split.samples)
        return Resident(whole.images.to(device), whole.targets.to(device), split.mean.to(device), split.std.to(device))

    def read_whole(self, name: str, samples: Samples) -> Tensors:
        """Read all samples of a split, by the worker processes, and show the progress."""
        if isinstance(samples, Tensors):
            return samples
        loader = DataLoader(Raw(samples), batch_size=256, num_workers=self.num_workers)
        about = f"Reading {type(self).__name__}'s {name} split"
        batches = list(tqdm(loader, desc=about, delay=2, mininterval=1, leave=False))
        images, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
        return Tensors(images, targets)


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
