"""What a deep network without skip connections does to its gradient, and what ZNorm makes of it.

Trains 20 fully connected layers on the handwritten digits and writes `gradients.png`: the standard deviation of each
layer's gradient over the steps, as the backward pass leaves it and as the optimizer receives it. About 15 seconds on
2 CPU cores.

The learning rate depends on `--no_znorm`, as one that suits the optimizer with ZNorm is far too low without it.
"""

import argparse
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_znorm import GradientMonitor, ZNorm
from lightning_znorm.vision import Digits


class DeepMLP(LightningModule):
    """Fully connected layers of 64 ReLU units with PyTorch's initial weights; no skip, no normalization."""

    def __init__(self, depth: int, lr: float) -> None:
        super().__init__()
        self.lr = lr
        hidden = [layer for _ in range(depth - 1) for layer in (nn.Linear(64, 64), nn.ReLU())]
        self.layers = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(64, 10))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the cross entropy."""
        images, labels = batch
        return nn.functional.cross_entropy(self.layers(images), labels)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the accuracy."""
        images, labels = batch
        self.log("val_acc", (self.layers(images).argmax(dim=1) == labels).float().mean())

    def configure_optimizers(self) -> Optimizer:
        """Return SGD with momentum."""
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


def main(argv: list[str] | None = None) -> None:
    """Train and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no_znorm", action="store_true", help="let the optimizer have the raw gradient")
    parser.add_argument("--depth", type=int, default=20, help="number of layers (%(default)s)")
    parser.add_argument("--lr", type=float, help="learning rate of SGD (0.0001; 0.02 with --no_znorm)")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batches", type=int, default=0, help="stop each epoch after this many batches, 0 for none")
    parser.add_argument("--out", type=Path, default=Path("results/gradient_monitor"), help="folder (%(default)s)")
    options = parser.parse_args(argv)
    if options.lr is None:
        options.lr = 0.02 if options.no_znorm else 0.0001

    seed_everything(0, verbose=False)
    monitor = GradientMonitor(every_n_steps=1 if options.batches else 2, picture="gradients.png")
    trainer = Trainer(
        max_epochs=options.epochs,
        limit_train_batches=options.batches or 1.0,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=options.out,
        callbacks=[ZNorm(min_ndim=2, enabled=not options.no_znorm), monitor],
    )
    trainer.fit(DeepMLP(options.depth, options.lr), Digits(image_size=8))
    print(f"Accuracy {trainer.callback_metrics['val_acc']:.3f}; see {options.out / 'gradients.png'}")


if __name__ == "__main__":
    main()
