"""Why: how large the gradient of each layer of the networks of the map is before the first step.

    python -m examples.map.gradients

Writes a table (`docs/data/map/gradients.csv`) and a picture. Each figure is of the first batch; sizes are geometric
means over eight seeds.
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from examples.map.data import FOLDER
from examples.map.picture import NETWORK_NAMES
from examples.map.run import DEPTHS, NETWORKS
from lightning_znorm.vision import Digits
from lightning_znorm.vision.perceptron import make_perceptron

PICTURE = Path("docs/images/map_gradients.png")
SEEDS = 8
EPS = 1e-8  # of Adam
NOISE = 0.5  # error of a gradient in float32, relative to that in float64, of which the direction is one of rounding


def measure(network: str, depth: int, images: Tensor, labels: Tensor, seed: int) -> pd.DataFrame:
    """Return a row per linear layer.

    Columns: ``layer``, counted from the input; ``rms`` of the gradient of its weights; ``below_eps``, the share of its
    elements other than zero that are smaller than the ``eps`` of Adam; ``noise``, the number of tensors of the layer
    whose gradient is nothing but rounding.
    """
    torch.manual_seed(seed)
    single = make_perceptron(depth, **NETWORKS[network])
    gradients = {torch.float32: find_gradients(single, images, labels)}
    gradients[torch.float64] = find_gradients(single.double(), images.double(), labels)
    layers = [name for name, module in single.named_modules() if isinstance(module, nn.Linear)]
    rows = []
    for number, layer in enumerate(layers, 1):
        exact = gradients[torch.float64][f"{layer}.weight"]
        errors = [
            ((gradients[torch.float32][name].double() - true).norm() / true.norm()).item()
            for name, true in gradients[torch.float64].items()
            if name.rpartition(".")[0] == layer
        ]
        rows.append(
            {
                "layer": number,
                "rms": exact.square().mean().sqrt().item(),
                "below_eps": (exact[exact != 0].abs() < EPS).double().mean().item(),
                "noise": sum(error > NOISE for error in errors),
            }
        )
    return pd.DataFrame(rows).assign(network=network, depth=depth, seed=seed)


def find_gradients(network: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return the gradient of each parameter."""
    loss = nn.functional.cross_entropy(network(images), labels)
    named = dict(network.named_parameters())
    return dict(zip(named, torch.autograd.grad(loss, [*named.values()]), strict=True))


def tabulate() -> pd.DataFrame:
    """Return the means over the seeds, a row per network, depth and layer."""
    runs = []
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        data = Digits(batch_size=64, image_size=8, seed=seed)
        data.prepare_data()
        data.setup("fit")
        images, labels = next(iter(data.train_dataloader()))
        runs += [measure(network, depth, images, labels, seed) for network in NETWORKS for depth in sorted(DEPTHS)]
    table = pd.concat(runs)
    table["rms"] = np.log(table["rms"])
    means = table.groupby(["network", "depth", "layer"], sort=False)[["rms", "below_eps", "noise"]].mean().reset_index()
    return means.assign(rms=np.exp(means["rms"]))


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw the size of the gradient against the place of the layer, a panel per network and a line per depth."""
    figure = Figure(figsize=(11.0, 6.0), layout="constrained")
    colors = matplotlib.colormaps["viridis"].resampled(len(DEPTHS) + 1)
    for axis, network in zip(figure.subplots(2, 3, sharex=True, sharey=True).flat, NETWORKS, strict=True):
        for number, depth in enumerate(sorted(DEPTHS)):
            own = table[(table["network"] == network) & (table["depth"] == depth)]
            axis.plot((own["layer"] - 1) / depth, own["rms"], color=colors(number), label=f"{depth} layers")
        axis.axhline(EPS, color="0.4", linestyle=":", linewidth=1.2)
        axis.set(title=NETWORK_NAMES[network], yscale="log")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, fontsize=8.5)
    figure.axes[1].text(1, 1.6 * EPS, "Adam's eps", ha="right", fontsize=8.5, color="0.3")
    figure.supxlabel("layer, from input (0) to output (1)")
    figure.supylabel("root mean square of the gradient of its weights")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=FOLDER, help="folder of the table (%(default)s)")
    parser.add_argument("--out", type=Path, default=PICTURE, help="picture (%(default)s)")
    options = parser.parse_args()
    table = tabulate()
    table.to_csv(options.data / "gradients.csv", index=False, float_format="%.3g")
    draw(table, options.out)
    print(f"See {options.data / 'gradients.csv'} and {options.out}")


if __name__ == "__main__":
    main()
