"""A whole split in the memory of a device, dealt out in batches and augmented there."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import BatchSampler

from lightning_znorm.vision.data._augmentation import Augmentation
from lightning_znorm.vision.data._order import Order

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
        order: Which samples, and in which order. A Trainer finds it in ``batch_sampler`` and sets its epoch.
        augmentation: Of training batches.

    Yields:
        Images ``(n, C, H, W)`` float32, standardized; targets ``(n,)`` int64, or ``(n, 1, H, W)`` float32.

    """

    def __init__(
        self, split: Resident, batch_size: int, order: Order, augmentation: Augmentation | None = None
    ) -> None:
        self.split = split
        self.batch_size = batch_size
        self.order = order
        self.batch_sampler = BatchSampler(order, batch_size, drop_last=False)
        self.augmentation = augmentation

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        device = self.split.images.device
        draws = self.order.draw(self.augmentation.draws if self.augmentation is not None else 0)
        order = torch.tensor(list(self.order), dtype=torch.int64)
        for chosen, numbers in zip(
            order.to(device).split(self.batch_size), draws.to(device).split(self.batch_size), strict=True
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
