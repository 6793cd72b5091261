"""How much of the gradient's direction does ZNorm keep, in each layer, along a whole training?

Trains a residual and a plain network of 20 layers on the handwritten digits with Adam and ZNorm, records the cosine
between each raw gradient and the normalized one, and draws it by kind of parameter; also the drift of the biases of
convolutions in front of BatchNorm, whose true gradient is zero (here added to the networks for the purpose). Writes
`cosine.csv` and `cosine.png`, and prints a table. About a minute and a half on 2 CPU cores.
"""

import argparse
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from lightning.pytorch import seed_everything
from matplotlib.figure import Figure
from torch import nn

from examples.paper.training import fit
from lightning_znorm import GradientMonitor, ZNorm
from lightning_znorm.vision import Digits, ImageClassifier

KINDS = {4: "convolutions", 2: "linear layer", 1: "BatchNorm and biases"}
COLORS = {"convolutions": "#d9480f", "linear layer": "#2a78b8", "BatchNorm and biases": "#5f6b7a"}


def add_biases(network: nn.Module) -> list[str]:
    """Give every convolution a bias of zeros, and return their names."""
    names = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and module.bias is None:
            module.register_parameter("bias", nn.Parameter(module.weight.new_zeros(module.out_channels)))
            names.append(f"{name}.bias")
    return names


def train(backbone: str, steps: int) -> pd.DataFrame:
    """Return the monitor's history of a training."""
    seed_everything(0, verbose=False)
    model = ImageClassifier(backbone, in_channels=1, optimizer=partial(torch.optim.Adam, lr=0.003))
    useless = set(add_biases(model))
    monitor = GradientMonitor(every_n_steps=max(1, steps // 40))
    fit(model, Digits(image_size=16), steps, monitor, ZNorm())
    frame = pd.DataFrame(monitor.history)
    frame["kind"] = frame["ndim"].map(KINDS)
    frame["is_useless"] = frame["name"].isin(useless)
    sizes = {name: own.detach().square().mean().sqrt().item() for name, own in model.named_parameters()}
    frame["final_rms"] = frame["name"].map(sizes)
    return frame.assign(network=backbone)


def summarize(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the cosine's quantiles by network and kind, and the sizes of the gradients that are only noise."""
    rows = []
    for network, whole in frame.groupby("network"):
        for kind, part in whole[~whole["is_useless"]].groupby("kind"):
            low, middle = part["cosine"].quantile([0.05, 0.5])
            rows.append((network, kind, part["cosine"].min(), low, middle, part["std"].median()))
        noise = whole[whole["is_useless"]]
        low, middle = noise["cosine"].quantile([0.05, 0.5])
        rows.append((network, "biases before BatchNorm", noise["cosine"].min(), low, middle, noise["std"].median()))
    return pd.DataFrame(rows, columns=["network", "parameters", "least", "5%", "median", "median std"])


def draw(frame: pd.DataFrame, path: Path) -> None:
    """Draw the median and the middle 90% of the cosine over the steps."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    networks = sorted(frame["network"].unique())
    for axis, network in zip(figure.subplots(1, len(networks), sharey=True, squeeze=False)[0], networks, strict=True):
        whole = frame[(frame["network"] == network) & ~frame["is_useless"]]
        for kind, part in whole.groupby("kind"):
            quantiles = part.groupby("step")["cosine"].quantile([0.05, 0.5, 0.95]).unstack()
            axis.plot(quantiles.index, quantiles[0.5], color=COLORS[kind], label=kind)
            axis.fill_between(quantiles.index, quantiles[0.05], quantiles[0.95], color=COLORS[kind], alpha=0.2, lw=0)
        axis.set(title=network, xlabel="step", ylim=(0, 1.03))
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("cosine of raw and normalized gradient")
    figure.axes[0].legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Train and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--out", type=Path, default=Path("results/cosine"), help="folder (%(default)s)")
    options = parser.parse_args()
    frame = pd.concat([train(f"cifar_{kind}20", options.steps) for kind in ("plain", "resnet")])
    options.out.mkdir(parents=True, exist_ok=True)
    summary = summarize(frame)
    print(summary.to_markdown(index=False, floatfmt=".3g"))
    for network, whole in frame[frame["is_useless"]].groupby("network"):
        print(f"{network}: biases before BatchNorm end at a root mean square of {whole['final_rms'].mean():.3g}")
    summary.to_csv(options.out / "cosine.csv", index=False, float_format="%.4g")
    draw(frame, options.out / "cosine.png")


if __name__ == "__main__":
    main()
