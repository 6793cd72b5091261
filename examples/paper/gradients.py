"""What plain and residual networks of 20 to 110 layers do to their gradient, with and without ZNorm.

Trains each of them for a few steps on CIFAR-10 with Adam and records every convolution's gradient. Writes a picture of
the gradient's size by layer (`gradients.png`), its figures (`gradients.csv`), and the monitor's own picture of each
training (`<network>-<method>.png`). About four minutes on 2 CPU cores.
"""

import argparse
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from lightning.pytorch import LightningDataModule, seed_everything
from matplotlib.figure import Figure

from examples.paper.training import fit
from lightning_znorm import GradientMonitor, ZNorm
from lightning_znorm.vision import CIFAR10, ImageClassifier, ImageFolder

COLORS = {20: "#2a78b8", 56: "#d9480f", 110: "#8250a8"}
LINES = {"none": "-", "znorm": "--"}


def make_data(folder: Path) -> LightningDataModule:
    """Return the tree of images if it is there, otherwise the original set."""
    tree = folder / "cifar10-jpeg"
    if tree.is_dir():
        return ImageFolder(str(tree), image_size=32, augment="flip_and_crop", batch_size=32, num_workers=0)
    return CIFAR10(str(folder), batch_size=32, num_workers=0)


def train(network: str, method: str, options: argparse.Namespace) -> pd.DataFrame:
    """Return the monitor's figures of the convolutions, the first of them as layer 1."""
    seed_everything(0, verbose=False)
    name = f"{network}-{method}"
    monitor = GradientMonitor(every_n_steps=max(1, options.steps // 20), exclude=["*head*"], picture=f"{name}.png")
    optimizer, znorm = partial(torch.optim.Adam, lr=options.lr), ZNorm(enabled=method == "znorm")
    model = ImageClassifier(f"cifar_{network}", num_classes=10, optimizer=optimizer)
    further = {"limit_val_batches": 0, "default_root_dir": options.out}
    trainer = fit(model, make_data(options.data), options.steps, monitor, znorm, **further)
    frame = monitor.to_frame()
    frame = frame[frame["ndim"] == 4].copy()
    frame["layer"] = frame.groupby("step").cumcount() + 1
    frame = frame[["step", "layer", "name", "std", "received_std", "cosine"]]
    print(f"{name}: loss {trainer.callback_metrics['train_loss']:.3f}", flush=True)
    return frame.assign(network=network, method=method)


def draw(frame: pd.DataFrame, path: Path) -> None:
    """Draw the gradient's size against the layer, at the first and at the last step."""
    kinds = sorted({network.rstrip("0123456789") for network in frame["network"]})
    figure = Figure(figsize=(5 * len(kinds), 6.6), layout="constrained")
    axes = figure.subplots(2, len(kinds), sharey=True, squeeze=False)
    for column, kind in enumerate(kinds):
        for row, (step, title) in enumerate(((0, "first step"), (frame["step"].max(), "last step"))):
            axis = axes[row][column]
            part = frame[(frame["step"] == step) & frame["network"].str.startswith(kind)]
            for (network, method), own in part.groupby(["network", "method"], sort=False):
                depth = int(network[len(kind) :])
                if row == 0 and method != "none":  # the same as without
                    continue
                place = (own["layer"] - 1) / (own["layer"].max() - 1)
                axis.plot(place, own["std"], LINES[method], color=COLORS[depth], label=f"{network}, {method}", lw=1.4)
            axis.set(title=f"{kind}, {title}", yscale="log", xlabel="depth of the layer, from input (0) to output (1)")
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
            axis.legend(frameon=False, fontsize=7.5)
    for row in axes:
        row[0].set_ylabel("standard deviation of the raw gradient")
    figure.savefig(path, dpi=100)


def main() -> None:
    """Train and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=("plain", "resnet"), default=["plain", "resnet"])
    parser.add_argument("--depths", nargs="+", type=int, choices=list(COLORS), default=list(COLORS))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--lr", type=float, default=0.001, help="learning rate of Adam (%(default)s)")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data sets (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("results/gradients"), help="folder (%(default)s)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    networks = [f"{kind}{depth}" for kind in options.kinds for depth in options.depths]
    frame = pd.concat([train(network, method, options) for network in networks for method in LINES])
    first = frame[(frame["step"] == 0) & (frame["method"] == "none")].groupby("network", sort=False)["std"]
    print(pd.DataFrame({"first layer : last layer": first.first() / first.last()}).to_markdown(floatfmt=".3g"))
    frame.to_csv(options.out / "gradients.csv", index=False, float_format="%.4g")
    draw(frame, options.out / "gradients.png")
    print(f"See {options.out / 'gradients.png'}")


if __name__ == "__main__":
    main()
