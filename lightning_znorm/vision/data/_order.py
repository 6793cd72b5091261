"""The order of the samples of an epoch, its batches, and the random numbers that belong to it."""

import hashlib
from collections.abc import Iterator, Sized
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DistributedSampler

from lightning_znorm.errors import DataError

__all__ = ["Order", "find_rank", "mix", "overfits", "share_seed"]


class Order(DistributedSampler[Any]):
    """The batches of one rank in each epoch, as lists of indices.

    Seed and epoch determine the order, so that a training that is resumed after an epoch, or whose loaders are made
    again, goes on with the order that it would have had. A Trainer sets the epoch; without one, each pass is the next
    epoch.

    All ranks have the same number of batches, as collective operations need. For training (``pads=True``) some samples
    are repeated where their number is no multiple of ``world_size``. Otherwise each sample comes once: then some ranks
    have smaller last batches than others; or, where ``batch_size`` is 1, one of 2 at the end.

    Args:
        samples: What is ordered.
        batch_size: Samples per batch.
        rank: Whose part it is.
        world_size: Number of ranks.
        seed: Of the order; the same on all ranks.
        shuffle: ``False`` leaves the order as it is.
        pads: Repeat samples.
        draws: Uniform random numbers that each sample takes. If there are any, a batch is a pair: the indices, and a
            list of the numbers of each sample.

    Raises:
        ValueError: If there are fewer samples than ranks, and none may be repeated.

    Example::

        >>> [list(Order(range(5), 2, rank, world_size=2)) for rank in (0, 1)]
        [[[0, 2], [4]], [[1], [3]]]

    """

    def __init__(
        self,
        samples: Sized,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        *,
        seed: int = 0,
        shuffle: bool = False,
        pads: bool = False,
        draws: int = 0,
    ) -> None:
        super().__init__(samples, world_size, rank, shuffle, seed=seed)  # type: ignore[arg-type]  # it wants its length
        self.count = len(samples)
        if not pads and self.count < world_size:
            raise DataError(
                f"A split of {self.count} sample(s) cannot be shared by {world_size} rank(s): each needs one at least."
                " Use fewer devices, or a larger split."
            )
        self.batch_size = batch_size
        self.pads = pads
        self.draws = draws

    def __len__(self) -> int:
        return len(self.sizes())

    def __iter__(self) -> Iterator[Any]:
        # a generator: a DataLoader with workers asks for two iterators at first, and uses one
        for indices, draws in self.deal(torch.device("cpu")):
            yield (indices.tolist(), draws.tolist()) if self.draws else indices.tolist()

    def deal(self, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Return indices and random numbers of each batch of the current epoch, and go on to the next epoch."""
        indices, draws = self.share().to(device), self.draw().to(device)  # drawn on the CPU: the same on any device
        self.epoch += 1
        return zip(indices.split(self.sizes()), draws.split(self.sizes()), strict=True)

    def sizes(self) -> list[int]:
        """Return the number of samples of each batch."""
        most = -(-self.count // self.num_replicas)
        batches = -(-most // self.batch_size)
        left = most
        if not self.pads:
            batches = min(batches, self.count // self.num_replicas)
            left = len(range(self.rank, self.count, self.num_replicas))
        sizes = []
        for later in reversed(range(batches)):
            sizes.append(min(self.batch_size, left - later) if later else left)
            left -= sizes[-1]
        return sizes

    def share(self) -> Tensor:
        """Return the rank's samples in the order of the current epoch, int64."""
        order = torch.arange(self.count)
        if self.shuffle:
            order = torch.randperm(self.count, generator=torch.Generator().manual_seed(mix(self.seed, self.epoch)))
        if self.pads:
            total = -(-self.count // self.num_replicas) * self.num_replicas
            order = order.repeat(-(-total // self.count))[:total]
        return order[self.rank :: self.num_replicas]

    def draw(self) -> Tensor:
        """Return random numbers, uniform in [0, 1), for each sample of :meth:`share`; other ones on each rank."""
        generator = torch.Generator().manual_seed(mix(self.seed, self.epoch, self.rank))
        return torch.rand(sum(self.sizes()), self.draws, generator=generator, dtype=torch.float32)


def find_rank(trainer: pl.Trainer | None) -> tuple[int, int]:
    """Return whose part of the data this process takes, and into how many parts they are divided.

    In a Trainer, ranks that hold parts of one model (tensor parallelism) take the same part of the data. Without one,
    as in Fabric, the parts are those of ``torch.distributed``.
    """
    if trainer is None:
        is_distributed = dist.is_available() and dist.is_initialized()
        return (dist.get_rank(), dist.get_world_size()) if is_distributed else (0, 1)
    kwargs = trainer.distributed_sampler_kwargs
    return (0, 1) if kwargs is None else (kwargs["rank"], kwargs["num_replicas"])


def overfits(trainer: pl.Trainer | None) -> bool:
    """Tell whether a Trainer trains on a few batches only, for which it puts a sampler of its own in each loader."""
    return bool(getattr(trainer, "overfit_batches", 0))


def share_seed(trainer: pl.Trainer | None, seed: int) -> int:
    """Return the seed of the first rank, so that all have one order also where nobody has seeded them alike."""
    if trainer is not None:
        shared: int = trainer.strategy.broadcast(seed)
        return shared
    seeds = [seed]
    if find_rank(trainer)[1] > 1:
        dist.broadcast_object_list(seeds)
    return seeds[0]


def mix(*numbers: int) -> int:
    """Return a seed that differs in all bits from that of any other numbers.

    Example::

        >>> mix(0, 1) == mix(1, 0), mix(0, 1) == mix(0, 1)
        (False, True)

    """
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:7], "big")
