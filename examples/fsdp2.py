"""ZNorm with FSDP2, compared step by step with a training in one process, on a laptop or on GPUs.

    torchrun --nproc-per-node 4 examples/fsdp2.py

Each process holds a quarter of the weights and gets a quarter of every batch. Beside it, each trains a whole copy of
the network on the whole batches by itself, with `znorm_` in a plain loop. After each step, both have the same weights
but for rounding, because ZNorm uses the statistics of whole tensors. With `--shards`, the copy is normalized by the
statistics of each shard instead, as an optimizer unaware of the other ranks would do: the difference shows that this is
another method.
"""

import argparse
import copy
import os
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_znorm import ZNorm, znorm_

BATCH, WORDS, LENGTH, WIDTH = 32, 64, 16, 48


class LanguageModel(LightningModule):
    """A small transformer that learns to repeat a word that it has seen three words before."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        layers = [nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True) for _ in range(2)]
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(WIDTH, WORDS)

    def configure_model(self) -> None:
        """Shard the weights over all ranks, layer by layer."""
        mesh = cast(DeviceMesh, self.device_mesh)["data_parallel"]
        for layer in self.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(self, mesh=mesh)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        """Return scores of the next words."""
        mask = nn.Transformer.generate_square_subsequent_mask(LENGTH, device=words.device)
        hidden = self.embedding(words)
        for layer in self.layers:
            hidden = layer(hidden, src_mask=mask)
        scores: torch.Tensor = self.head(hidden)
        return scores.clone()  # FSDP2 warns about an output that is a view

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        """Return the cross-entropy."""
        (words,) = batch
        return nn.functional.cross_entropy(self(words)[:, 3:].flatten(0, 1), words[:, :-3].flatten())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Use SGD, at a rate for normalized gradients."""
        return torch.optim.SGD(self.parameters(), lr=1e-3, momentum=0.9)


class CompareWithOneProcess(Callback):
    """Train a whole copy on the batches of all ranks, and print how far the sharded weights are from it."""

    def __init__(self, network: LanguageModel, batches: list[torch.Tensor], by_shard: bool) -> None:
        self.copy, self.batches, self.by_shard = copy.deepcopy(network), batches, by_shard

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Create the optimizer of the copy."""
        self.copy.to(trainer.strategy.root_device)
        self.optimizer = self.copy.configure_optimizers()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Make the same step with the copy."""
        self.optimizer.zero_grad()
        loss = self.copy.training_step([self.batches[batch_idx].to(trainer.strategy.root_device)])
        loss.backward()
        if self.by_shard:
            for parameter in self.copy.parameters():
                assert parameter.grad is not None
                for shard in parameter.grad.chunk(trainer.world_size):
                    shard.sub_(shard.mean()).div_(shard.std(correction=0) + 1e-10)
        else:
            znorm_(self.copy.parameters())
        self.optimizer.step()
        whole = [
            cast(DTensor, parameter).full_tensor() for parameter in pl_module.parameters()
        ]  # all ranks must call it
        pairs = zip(whole, self.copy.parameters(), strict=True)
        distance = max((one - other).abs().max().item() for one, other in pairs)
        if trainer.is_global_zero:
            print(f"step {batch_idx + 1}: loss {loss.item():.4f}, largest difference of a weight {distance:.1e}")


def main(argv: list[str] | None = None) -> None:
    """Train as one of the ranks that torchrun has started."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--shards", action="store_true", help="normalize the copy by the statistics of shards")
    options = parser.parse_args(argv)
    if "LOCAL_WORLD_SIZE" not in os.environ:
        parser.error("start it with torchrun: `torchrun --nproc-per-node 4 examples/fsdp2.py`")
    devices, ranks, rank = (int(os.environ[name]) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE", "RANK"))
    if BATCH % ranks:
        parser.error(f"the number of processes must divide the batch of {BATCH} samples, but is {ranks}")

    torch.manual_seed(0)
    network = LanguageModel()
    batches = [torch.randint(WORDS, (BATCH, LENGTH)) for _ in range(options.steps)]
    share = BATCH // ranks
    mine = TensorDataset(torch.cat([batch[rank * share : (rank + 1) * share] for batch in batches]))
    accelerator, backend = ("cuda", "nccl") if torch.cuda.is_available() else ("cpu", "gloo")
    trainer = Trainer(
        accelerator=accelerator,
        devices=devices,
        num_nodes=ranks // devices,
        strategy=ModelParallelStrategy(data_parallel_size=ranks, tensor_parallel_size=1, process_group_backend=backend),
        max_epochs=1,
        callbacks=[ZNorm(), CompareWithOneProcess(network, batches, options.shards)],
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(network, DataLoader(mine, batch_size=share))


if __name__ == "__main__":
    main()
