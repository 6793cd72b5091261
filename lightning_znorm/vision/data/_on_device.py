"""A whole split in the memory of a device, dealt out in batches and augmented there."""

from collections.abc import Iterator

from torch import Tensor

from lightning_znorm.vision.data._augmentation import Augmentation
from lightning_znorm.vision.data._order import Order
from lightning_znorm.vision.data._splits import Split

__all__ = ["DeviceLoader"]


class DeviceLoader:
    """Batches of a split that is on a device already: no worker, no copy, no wait.

    A Trainer finds the order in ``sampler`` and sets its epoch.
    """

    batch_sampler = None  # a Trainer asks for it wherever there is a `sampler`

    def __init__(self, split: Split, order: Order, augmentation: Augmentation | None = None) -> None:
        self.split = split
        self.sampler = order
        self.augmentation = augmentation

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        for indices, draws in self.sampler.deal(self.split.mean.device):
            yield self.split.prepare(indices, self.augmentation, draws)
