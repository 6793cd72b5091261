"""A LightningDataModule of three small splits that stay in memory."""

from abc import abstractmethod
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_znorm.errors import require_count
from lightning_znorm.vision.data._order import Order, find_rank, overfits

Splits = dict[str, TensorDataset]
Batch = tuple[Tensor, ...]


class InMemoryDataModule(pl.LightningDataModule):
    """Splits ``train``, ``val`` and ``test`` as tensors, loaded once.

    The order of the training batches comes from a generator of their own, seeded by ``seed`` and PyTorch's global seed
    (``seed_everything``), so that it does not depend on how many random numbers a model's initialization drew.

    Args:
        batch_size: Samples per batch.
        num_workers: Worker processes per loader.
        seed: Seed of the training order (and of random splits).

    """

    def __init__(self, batch_size: int, num_workers: int, seed: int) -> None:
        super().__init__()
        self.batch_size = require_count("batch_size", batch_size, least=1)
        self.num_workers = require_count("num_workers", num_workers)
        self.seed = seed
        self._splits: Splits = {}

    @abstractmethod
    def load(self) -> Splits:
        """Return the three splits."""

    def setup(self, stage: str | None = None) -> None:
        """Load the splits, once."""
        if not self._splits:
            self._splits = self.load()

    def train_dataloader(self) -> DataLoader[Batch]:
        """Training batches in a new random order each epoch."""
        generator = torch.Generator().manual_seed((torch.initial_seed() + self.seed) % 2**63)
        return self._loader("train", batch_size=self.batch_size, shuffle=True, generator=generator)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Validation batches; under DDP each sample comes once."""
        return self._evaluation("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        """Test batches; under DDP each sample comes once."""
        return self._evaluation("test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        """The test batches."""
        return self._loader("test", batch_size=self.batch_size)

    def _evaluation(self, split: str) -> DataLoader[Batch]:
        if overfits(self.trainer):
            return self._loader(split, batch_size=self.batch_size)
        order = Order(self._splits[split], self.batch_size, *find_rank(self.trainer))
        return self._loader(split, batch_size=None, sampler=order)

    def _loader(self, split: str, **arguments: Any) -> DataLoader[Batch]:
        return DataLoader(
            self._splits[split], num_workers=self.num_workers, persistent_workers=self.num_workers > 0, **arguments
        )
