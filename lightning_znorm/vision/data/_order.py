"""The order of the samples of an epoch, and the random numbers that belong to it."""

import hashlib
from collections.abc import Iterator, Sized

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

__all__ = ["Order", "mix"]


class Order(DistributedSampler[int]):
    """The part of one rank in the order of each epoch.

    Seed and epoch determine the order, so that a training that is resumed, or whose loaders are made anew, goes on with
    the order that it would have had. A Trainer sets the epoch; without one, each pass is the next epoch.

    Args:
        samples: What is ordered.
        seed: Of the order; the same on all ranks.
        rank: Whose part it is.
        world_size: Number of ranks.
        shuffle: ``False`` leaves the order as it is.
        pads: Repeat some samples where their number is no multiple of ``world_size``, so that all parts are of one
            length.

    Example::

        >>> [list(Order(range(5), seed=0, rank=rank, world_size=2, shuffle=False)) for rank in (0, 1)]
        [[0, 2, 4], [1, 3, 0]]

    """

    def __init__(
        self, samples: Sized, seed: int, rank: int = 0, world_size: int = 1, shuffle: bool = True, pads: bool = True
    ) -> None:
        super().__init__(samples, world_size, rank, shuffle, seed=seed)  # type: ignore[arg-type]  # it wants its length
        self.count = len(samples)
        self.pads = pads

    def __len__(self) -> int:
        if self.pads:
            return -(-self.count // self.num_replicas)
        return len(range(self.rank, self.count, self.num_replicas))

    def __iter__(self) -> Iterator[int]:
        order = self.share()
        self.epoch += 1
        return iter(order.tolist())

    def share(self) -> Tensor:
        """Return the part in the current epoch, int64."""
        order = torch.arange(self.count)
        if self.shuffle:
            order = torch.randperm(self.count, generator=torch.Generator().manual_seed(mix(self.seed, self.epoch)))
        if self.pads:
            total = len(self) * self.num_replicas
            order = order.repeat(-(-total // self.count))[:total]
        return order[self.rank :: self.num_replicas]

    def draw(self, numbers: int) -> Tensor:
        """Return uniform random numbers for each sample of the part, ``(len(self), numbers)``, other ones per rank."""
        generator = torch.Generator().manual_seed(mix(self.seed, self.epoch, self.rank))
        return torch.rand(len(self), numbers, generator=generator)


def mix(*numbers: int) -> int:
    """Return a seed that differs in all bits from that of any other numbers.

    Example::

        >>> mix(0, 1) == mix(1, 0), mix(0, 1) == mix(0, 1)
        (False, True)

    """
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:7], "big")
