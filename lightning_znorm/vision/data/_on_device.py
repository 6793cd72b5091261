"""A whole split in the memory of a device, dealt out in batches and augmented there."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_znorm.vision.data._augmentation import Augmentation

__all__ = ["DeviceLoader", "Resident"]


@dataclass(frozen=True)
class Resident:
    """A split on a device.

    Attributes:
        images: ``(N, C, H, W)`` uint8.
        targets: ``(N,)`` int64 labels, or ``(N, 1, H, W)`` uint8 masks of 0 and 1.
        mean: ``(1, C)``, or ``(N, C)``: that of each image, in units of 0 to 255.
        std: Likewise.

    """

    images: Tensor
    targets: Tensor
    mean: Tensor
    std: Tensor


class DeviceLoader:
    """Batches of a split that is on a device already: no worker, no copy, no wait.

    The order of the samples and the random numbers of the augmentation are drawn on the CPU, once per epoch, so that
    they do not depend on the device.

    Args:
        split: What to deal out.
        batch_size: Samples per batch; the last one may have fewer.
        augmentation: Of training batches.
        generator: Shuffles and augments; ``None`` leaves the order as it is.
        rank: Which part of each epoch is this process's.
        world_size: Number of parts. As in ``DistributedSampler``, the first samples come twice where the number of
            samples is no multiple of it.

    Yields:
        Images ``(n, C, H, W)`` float32, standardized; targets ``(n,)`` int64, or ``(n, 1, H, W)`` float32.

    """

    def __init__(
        self,
        split: Resident,
        batch_size: int,
        augmentation: Augmentation | None = None,
        generator: torch.Generator | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.split = split
        self.batch_size = batch_size
        self.augmentation = augmentation
        self.generator = generator
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        return -(-self._share // self.batch_size)

    @property
    def _share(self) -> int:
        return -(-len(self.split.images) // self.world_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        count, device = len(self.split.images), self.split.images.device
        order = torch.arange(count) if self.generator is None else torch.randperm(count, generator=self.generator)
        missing = self._share * self.world_size - count
        order = torch.cat([order, order[:missing]])
        draws = torch.empty(len(order), 0)
        if self.augmentation is not None:
            draws = torch.rand(len(order), self.augmentation.draws, generator=self.generator)
        mine = slice(self.rank, None, self.world_size)
        for chosen, numbers in zip(
            order[mine].to(device).split(self.batch_size), draws[mine].to(device).split(self.batch_size), strict=True
        ):
            yield self._batch(chosen, numbers)

    def _batch(self, chosen: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        images, targets = self.split.images[chosen], self.split.targets[chosen]
        masks = targets if targets.ndim > 1 else None
        if self.augmentation is not None:
            images, masks = self.augmentation(images, masks, draws)
        mean, std = (
            (figure[chosen] if len(figure) > 1 else figure)[:, :, None, None]
            for figure in (self.split.mean, self.split.std)
        )
        return (images.float() - mean) / std, targets if masks is None else masks.float()
