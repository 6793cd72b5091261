"""ZNorm with Lightning Fabric: `attach(optimizer, ZNorm())` after `fabric.setup`.

Trains a small network on scikit-learn's digits. On two processes, each with half of every batch:

    python examples/fabric.py --devices 2 --strategy ddp_spawn

With and without ZNorm (`--no_znorm`), the learning rate is by default the best one of a small sweep. A comparison at
one shared rate says nothing: it only shows which of the two this rate suits.
"""

import argparse
from functools import partial

import torch
from lightning.fabric import Fabric
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_znorm import ZNorm, attach


def train(fabric: Fabric, epochs: int, lr: float, znorm: ZNorm) -> None:
    """Train on one process of however many there are."""
    fabric.seed_everything(0, verbose=False)
    pixels, labels = load_digits(return_X_y=True)
    images, targets = torch.from_numpy(pixels).float() / 16, torch.from_numpy(labels).long()
    training = TensorDataset(images[:-300], targets[:-300])
    loader = fabric.setup_dataloaders(DataLoader(training, batch_size=64 // fabric.world_size, shuffle=True))

    network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    model, optimizer = fabric.setup(network, torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9))
    handle = attach(optimizer, znorm, model)

    test_images, test_targets = fabric.to_device(images[-300:]), fabric.to_device(targets[-300:])
    for epoch in range(epochs):
        for inputs, classes in loader:
            optimizer.zero_grad()
            fabric.backward(nn.functional.cross_entropy(model(inputs), classes))
            optimizer.step()
        with torch.no_grad():
            accuracy = (model(test_images).argmax(1) == test_targets).float().mean().item()
        counts = f"{handle.step} steps normalized, {handle.skipped_steps} skipped"
        fabric.print(f"epoch {epoch + 1}: accuracy {accuracy:.3f}, {counts}")


def main(argv: list[str] | None = None) -> None:
    """Choose devices, strategy and precision, and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--strategy", default="auto")
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--lr", type=float, help="learning rate (0.001; 0.1 with --no_znorm: the best of each)")
    parser.add_argument("--no_znorm", action="store_true", help="train without ZNorm")
    options = parser.parse_args(argv)
    if options.lr is None:
        options.lr = 0.1 if options.no_znorm else 0.001
    znorm = ZNorm(nonfinite="skip", enabled=not options.no_znorm)
    fabric = Fabric(
        accelerator=options.accelerator,
        strategy=options.strategy,
        devices=options.devices,
        precision=options.precision,
    )
    fabric.launch(partial(train, epochs=options.epochs, lr=options.lr, znorm=znorm))


if __name__ == "__main__":
    main()
