"""ZNorm in a training loop of plain PyTorch: one line, `attach(optimizer, ZNorm())`.

Trains a small network on scikit-learn's digits, with ZNorm (or, with `--no_znorm`, without) and prints the accuracy.
`--amp` trains in mixed precision with a GradScaler, `--closure` hands the optimizer a closure instead.

With and without ZNorm, the learning rate is by default the best one of a small sweep. A comparison at one shared rate
says nothing: it only shows which of the two this rate suits.
"""

import argparse
from collections.abc import Iterator

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lightning_znorm import ZNorm, attach


def load() -> tuple[Tensor, Tensor]:
    """Return images of 64 pixels in [0, 1], and their labels."""
    pixels, labels = load_digits(return_X_y=True)
    return torch.from_numpy(pixels).float() / 16, torch.from_numpy(labels).long()


def batches(images: Tensor, labels: Tensor, size: int = 64) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffle and split."""
    for index in torch.randperm(len(images)).split(size):
        yield images[index], labels[index]


def main(argv: list[str] | None = None) -> float:
    """Train, and return the accuracy on the last 300 digits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--lr", type=float, help="learning rate (0.001; 0.3 with --no_znorm: the best of each)")
    parser.add_argument("--no_znorm", action="store_true", help="train without ZNorm")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--amp", action="store_true", help="float16 activations and a GradScaler")
    how.add_argument("--closure", action="store_true", help="optimizer.step(closure)")
    options = parser.parse_args(argv)
    if options.lr is None:
        options.lr = 0.3 if options.no_znorm else 0.001

    torch.manual_seed(0)
    images, labels = load()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images, labels = images.to(device), labels.to(device)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=options.lr, momentum=0.9)
    attach(optimizer, ZNorm(enabled=not options.no_znorm))
    scaler = torch.amp.GradScaler(device, enabled=options.amp)

    for epoch in range(options.epochs):
        for inputs, targets in batches(images[:-300], labels[:-300]):

            def backpropagate(inputs: Tensor = inputs, targets: Tensor = targets) -> float:
                optimizer.zero_grad()
                with torch.autocast(device, torch.float16, enabled=options.amp):
                    loss = nn.functional.cross_entropy(model(inputs), targets)
                scaler.scale(loss).backward()
                return loss.item()

            if options.closure:
                optimizer.step(backpropagate)
            else:
                backpropagate()
                scaler.step(optimizer)  # unscales, and skips the step if a gradient is not finite
                scaler.update()
        with torch.no_grad():
            accuracy = float((model(images[-300:]).argmax(1) == labels[-300:]).float().mean())
        print(f"epoch {epoch + 1}: accuracy {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
