"""The picture and the tables of docs/learning_rate.md, from the published trials.

python -m examples.map.rates_page
"""

import argparse
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from examples.collection import read_trials
from examples.map.analysis import CHANCE, LEARNED
from examples.map.data import METHODS, add_place
from examples.map.picture import NETWORK_NAMES, OPTIMIZER_NAMES
from examples.map.ranges import Range, find_range

FOLDER = Path("docs/data/rates")
PICTURE = Path("docs/images/learning_rates.png")


def read(folder: Path = FOLDER) -> pd.DataFrame:
    """Return the trials by network and optimizer."""
    return add_place(read_trials(folder))


def find_ranges(trials: pd.DataFrame, optimizer: str) -> dict[str, dict[str, Range | None]]:
    """Return the range of each network and method, ``None`` where nothing is learned at any rate."""
    own = trials[trials["optimizer"] == optimizer]
    found = {
        key: find_range(runs) if runs["validation"].max() > LEARNED else None
        for key, runs in own.groupby(["network", "method"])
    }
    networks = [network for network in NETWORK_NAMES if (network, METHODS[0]) in found]
    return {network: {method: found[network, method] for method in METHODS} for network in networks}


def render(trials: pd.DataFrame, optimizer: str) -> str:
    """Return the table of an optimizer: the best rate of each method in each network, and the range that works."""
    lines = [f"| network | {' | '.join(f'`{method}`' for method in METHODS)} |", f"|{'---|' * (1 + len(METHODS))}"]
    for network, found in find_ranges(trials, optimizer).items():
        cells = [f"{of.best:g} ({of})" if of else "–" for of in found.values()]
        lines.append(f"| {NETWORK_NAMES[network]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(trials: pd.DataFrame, path: Path) -> None:
    """Draw the validation accuracy against the rate, a row per network, a column per optimizer."""
    optimizers = [optimizer for optimizer in OPTIMIZER_NAMES if (trials["optimizer"] == optimizer).any()]
    networks = [network for network in NETWORK_NAMES if (trials["network"] == network).any()]
    figure = Figure(figsize=(5.6 * len(optimizers), 0.9 + 1.9 * len(networks)), layout="constrained")
    grid = figure.subplots(len(networks), len(optimizers), sharex=True, sharey=True, squeeze=False)
    colors = {method: matplotlib.colormaps["Dark2"](number) for number, method in enumerate(METHODS)}
    for axes, network in zip(grid, networks, strict=True):
        for axis, optimizer in zip(axes, optimizers, strict=True):
            own = trials[(trials["network"] == network) & (trials["optimizer"] == optimizer)]
            for method, color in colors.items():
                tried = own[own["method"] == method].sort_values("rate")
                line = "--" if method == METHODS[-1] else "-"
                accuracy = 100 * tried["validation"].fillna(CHANCE)
                axis.plot(tried["rate"], accuracy, line, color=color, linewidth=1.5, label=method)
            axis.set_xscale("log")
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
        axes[0].set_ylabel(NETWORK_NAMES[network], fontsize=9)
    for axis, optimizer in zip(grid[0], optimizers, strict=True):
        axis.set_title(OPTIMIZER_NAMES[optimizer], fontsize=11)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    for axis in grid[-1]:
        axis.set_xlabel("learning rate")
    figure.legend(handles, labels, loc="outside lower center", ncols=3 * len(optimizers), frameon=False)
    figure.supylabel("validation accuracy in %")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def main() -> None:
    """Draw the picture and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=FOLDER, help="folder of the tables (%(default)s)")
    parser.add_argument("--out", type=Path, default=PICTURE, help="picture (%(default)s)")
    options = parser.parse_args()
    trials = read(options.data)
    for optimizer in trials["optimizer"].unique():
        print(f"\n{OPTIMIZER_NAMES[optimizer]}\n\n{render(trials, optimizer)}")
    draw(trials, options.out)
    print(f"See {options.out}")


if __name__ == "__main__":
    main()
