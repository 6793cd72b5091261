"""The page of the docs that says whether the best learning rate transfers, and its picture.

python -m examples.map.transfer_page
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from examples.collection import read_confirmation, read_trials
from examples.map.analysis import CHANCE
from examples.map.data import TEST_IMAGES
from examples.map.ranges import find_range
from examples.map.transfer import BASE, ENDING, METHODS, Size, base_of, parse_size
from lightning_znorm.compare.report.sign_flip import invert_sign_flip

FOLDER = Path("docs/data/transfer")
PAGE, PICTURE = Path("docs/transfer.md"), Path("docs/images/transfer.png")
AXES = {"depth": "layers of {}", "width": "{} layers"}
ABOUT = """# Does the best learning rate transfer?

Written by `python -m examples.map.transfer_page` from [the runs](data/transfer/confirmation.csv) and
[the trials](data/transfer/trials.csv) of `make transfer`; what it says is on the page [Where it helps](results.md).

Residual perceptrons with LayerNorm on the digits, SGD with momentum 0.9, 12 epochs: six depths at a width of 64, and
six widths at a depth of 8. Rates in half decades from 1e-6 to 10, so that both ends of the range that works are seen.

![Validation accuracy against the learning rate for each method and size](images/transfer.png)

*Best* is the rate with the best validation accuracy. A rate *works* if it gains at least half of what that gains over
guessing; with one to three seeds each, this is a description. *Searched* is the test accuracy at the best rate, in
percent, the mean of 12 fresh seeds, and *loss* is what the rate that is best with 8 layers of 64 loses with the same
seeds, in points, with its 95% interval.
"""


def tabulate(confirmation: pd.DataFrame, trials: pd.DataFrame) -> pd.DataFrame:
    """Return a row per size and method, by depth and then by width.

    Args:
        confirmation: Test accuracies, a row per comparison and seed.
        trials: Validation accuracies, a row per comparison, method and rate.

    Returns:
        Columns ``size``, ``method``, ``range`` of the rates that work, ``searched``, the accuracy at the best rate, and
        ``loss`` of the transferred rate with ``loss_low`` and ``loss_high``.

    """
    runs = {str(name): own.set_index("seed") for name, own in confirmation.groupby("comparison")}
    tried = {str(name): own for name, own in trials.groupby("comparison")}
    rows = []
    for name in sorted(tried, key=lambda name: rank(parse_size(name))):
        for method in METHODS:
            searched = runs[name][method]
            row = {"size": parse_size(name), "method": method, "searched": searched.mean()}
            row["range"] = find_range(tried[name][tried[name]["method"] == method])
            row |= {"loss": 0.0, "loss_low": 0.0, "loss_high": 0.0}
            if (transferred := runs.get(name + ENDING)) is not None:
                differences = (searched - transferred[method].loc[searched.index]).tolist()
                row["loss"] = sum(differences) / len(differences)
                row["loss_low"], row["loss_high"] = invert_sign_flip(differences)
            rows.append(row)
    return pd.DataFrame(rows)


def rank(size: Size) -> tuple[str, bool, int, int]:
    """Return where a size is in a list by kind, by depth and then by width."""
    is_base_depth = size.depth == BASE["depth"] and size.width != BASE["width"]
    return (size.kind, is_base_depth, size.depth, size.width)


def render(confirmation: pd.DataFrame, trials: pd.DataFrame) -> str:
    """Return the page."""
    lines = [ABOUT, "| layers | width | method | best | works | searched | loss |", f"|{'---|' * 7}"]
    for row in tabulate(confirmation, trials).to_dict("records"):
        size: Size = row["size"]
        loss = "–" if size == base_of(size) else show_loss(row)
        cells = [f"{size.depth}", f"{size.width}", f"`{row['method']}`", f"{row['range'].best:g}", f"{row['range']}"]
        cells += [f"{100 * row['searched']:.1f}", loss]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def show_loss(row: Mapping[Any, Any]) -> str:
    """Return a loss with its interval.

    >>> show_loss({"loss": 0.012, "loss_low": -0.001, "loss_high": 0.03})
    '1.2 (−0.1 to 3.0)'

    """
    loss, low, high = (f"{100 * row[key]:.1f}".replace("-0.0", "0.0") for key in ("loss", "loss_low", "loss_high"))
    return f"{loss} ({low} to {high})".replace("-", "−")


def draw(trials: pd.DataFrame, path: Path) -> None:
    """Draw the validation accuracy against the rate: a row per method, depths on the left, widths on the right."""
    figure = Figure(figsize=(11.0, 2.5 * len(METHODS) + 0.8), layout="constrained")
    grid = figure.subplots(len(METHODS), 2, sharex=True, sharey=True)
    sizes = {name: parse_size(name) for name in trials["comparison"].unique()}
    for column, (kind, title) in enumerate(AXES.items()):
        other = "width" if kind == "depth" else "depth"
        chosen = sorted(
            (getattr(size, kind), name) for name, size in sizes.items() if getattr(size, other) == BASE[other]
        )
        colors = matplotlib.colormaps["viridis"].resampled(len(chosen) + 1)
        for axis, method in zip(grid[:, column], METHODS, strict=True):
            for number, (value, name) in enumerate(chosen):
                own = trials[(trials["comparison"] == name) & (trials["method"] == method)].sort_values("rate")
                accuracy = 100 * own["validation"].fillna(CHANCE)
                axis.plot(own["rate"], accuracy, color=colors(number), linewidth=1.5, label=f"{value}")
                best = own["selected"] == 1
                axis.plot(own["rate"][best], accuracy[best], "o", color=colors(number), markersize=6)
            axis.set_xscale("log")
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
            axis.text(0.01, 0.9, method, transform=axis.transAxes, weight="bold")
        grid[0, column].set_title(title.format(BASE[other]))
        grid[0, column].legend(title=kind, fontsize=8, ncols=2, loc="lower center", frameon=False)
    figure.supylabel("validation accuracy in %")
    figure.supxlabel("learning rate; a dot is the best")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def main() -> None:
    """Write the page and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=FOLDER, help="folder of the tables (%(default)s)")
    parser.add_argument("--page", type=Path, default=PAGE, help="(%(default)s)")
    parser.add_argument("--picture", type=Path, default=PICTURE, help="(%(default)s)")
    options = parser.parse_args()
    confirmation, trials = read_confirmation(options.data, TEST_IMAGES), read_trials(options.data)
    options.page.write_text(render(confirmation, trials))
    draw(trials, options.picture)
    print(f"See {options.page} and {options.picture}")


if __name__ == "__main__":
    main()
