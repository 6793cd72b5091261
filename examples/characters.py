"""A small transformer that predicts the next character of Python's own documentation.

lightning-znorm compare --config examples/characters.yaml
"""

import pydoc_data.topics
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler


class Snippets(Dataset[Tensor]):
    """All runs of so many characters of a text, as int64 numbers of the characters."""

    def __init__(self, text: Tensor, length: int) -> None:
        self.text, self.length = text, length

    def __len__(self) -> int:
        return len(self.text) - self.length

    def __getitem__(self, start: int) -> Tensor:
        return self.text[start : start + self.length + 1]


class PythonTopics(pl.LightningDataModule):
    """The help texts that Python carries, 80% for training and 10% each for validation and test, by topic.

    Args:
        batch_size: Snippets per batch.
        length: Characters per snippet.
        steps: Batches per epoch.
        seed: Of the split of the topics.

    """

    def __init__(self, batch_size: int = 32, length: int = 64, steps: int = 100, seed: int = 0) -> None:
        super().__init__()
        self.batch_size, self.length, self.steps, self.seed = batch_size, length, steps, seed

    def setup(self, stage: str | None = None) -> None:
        """Split the topics."""
        topics = pydoc_data.topics.topics
        names = sorted(topics)
        characters = sorted({*"".join(topics.values())})
        order = torch.randperm(len(names), generator=torch.Generator().manual_seed(self.seed)).tolist()
        held = len(names) // 10
        parts = {"val": order[:held], "test": order[held : 2 * held], "train": order[2 * held :]}
        numbers = {character: number for number, character in enumerate(characters)}
        self.splits = {
            name: torch.tensor([numbers[character] for topic in part for character in topics[names[topic]]])
            for name, part in parts.items()
        }

    def train_dataloader(self) -> Any:
        """Random snippets."""
        snippets = Snippets(self.splits["train"], self.length)
        sampler = RandomSampler(snippets, replacement=True, num_samples=self.steps * self.batch_size)
        return DataLoader(snippets, self.batch_size, sampler=sampler)

    def val_dataloader(self) -> Any:
        """Snippets one after the other."""
        return self._whole("val")

    def test_dataloader(self) -> Any:
        """Snippets one after the other."""
        return self._whole("test")

    def _whole(self, name: str) -> Any:
        text = self.splits[name]
        rows = text[: (len(text) - 1) // self.length * self.length + 1].unfold(0, self.length + 1, self.length)
        dataset: Any = rows
        return DataLoader(dataset, 256)


class CharacterTransformer(pl.LightningModule):
    """A causal transformer; logs the cross-entropy ``val_loss`` and the share of right characters ``val_acc``.

    Args:
        layers: Number of blocks.
        width: Features of a character.
        heads: Number of attention heads.
        norm_first: Whether LayerNorm comes before each part of a block, or after its sum.
        vocabulary: Largest number of different characters.
        length: Largest number of characters of a snippet.
        optimizer: Makes the optimizer of the parameters.
        lr_scheduler: Makes the scheduler of the optimizer; it steps after every optimizer step.

    """

    def __init__(
        self,
        layers: int = 4,
        width: int = 64,
        heads: int = 4,
        norm_first: bool = True,
        vocabulary: int = 256,
        length: int = 64,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        block = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, batch_first=True, norm_first=norm_first)
        self.blocks = nn.TransformerEncoder(block, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, characters: Tensor) -> Tensor:
        """Return logits ``(N, length, vocabulary)`` of the characters that follow those of ``(N, length)``."""
        count = characters.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(count, device=characters.device)
        features = self.embedding(characters) + self.position[:count]
        logits: Tensor = self.head(self.blocks(features, mask=mask, is_causal=True))
        return logits

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Return the cross-entropy."""
        loss, _ = self._evaluate(batch)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Log the metrics."""
        self._log("val", batch)

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        """Log the metrics."""
        self._log("test", batch)

    def _evaluate(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        logits, targets = self(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten()
        return nn.functional.cross_entropy(logits, targets), (logits.argmax(dim=1) == targets).float().mean()

    def _log(self, split: str, batch: Tensor) -> None:
        loss, accuracy = self._evaluate(batch)
        self.log_dict({f"{split}_loss": loss, f"{split}_acc": accuracy}, batch_size=len(batch))

    def configure_optimizers(self) -> Any:
        """Return the optimizer, and the scheduler if there is one."""
        optimizer = self.optimizer(self.parameters())
        if self.lr_scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.lr_scheduler(optimizer), "interval": "step"},
        }
