"""How far can the learning rate be raised before nothing is learnt, with each method?

Reads the results of comparisons that sweep one learning rate, draws the validation metric (the larger the better)
against the rate for each of them, and tabulates per method the best rate, how far it can be raised, and by which factor
that is. It can be raised as long as the mean over the seeds is at least half as far above guessing as with the best
one; a run that fails or diverges has learnt nothing. A method that learns nothing at any rate has neither.

    python examples/paper/run.py depth --optimizers sgd
    python examples/paper/rates.py results/paper/small/depth-*-sgd --chance 0.1
"""

import argparse
import math
from pathlib import Path

import pandas as pd
from comparisons import COLORS, add_folders, check_folders
from matplotlib.axes import Axes
from matplotlib.figure import Figure

KEY = "model.init_args.lr"
MARKERS = "osD^vP"
MOST_COLUMNS = 4


def read(folder: Path, chance: float) -> pd.DataFrame:
    """Return the validation metric of each run of a comparison; that of one that came to nothing is ``chance``.

    Raises:
        ValueError: If the comparison sweeps something else.

    """
    runs = pd.read_csv(folder / "runs.csv")
    if KEY not in runs:
        raise ValueError(f"{folder / 'runs.csv'} has no column {KEY!r}: the comparison does not sweep it.")
    failed = runs["validation"].isna()
    return pd.DataFrame(
        {
            "comparison": folder.name,
            "method": runs["method"],
            "rate": runs[KEY],
            "metric": runs["validation"].fillna(chance),
            "failed": failed,
        }
    )


def tabulate(runs: pd.DataFrame, chance: float, least: float) -> pd.DataFrame:
    """Return the best rate by comparison and method, with the metric there, and how far it can be raised.

    A best metric of less than ``chance + least`` is nothing.
    """
    rows = []
    for (comparison, method), own in runs.groupby(["comparison", "method"], sort=False):
        means = own.groupby("rate")["metric"].mean()
        best, peak = float(means.index[int(means.argmax())]), float(means.max())
        above = (means - chance >= 0.5 * (peak - chance))[means.index >= best]
        highest = float(means.index[means.index >= best][above.cummin()].max())
        is_learnt = peak >= chance + least
        edge = "≥ " if highest == means.index.max() else ""
        rows.append(
            {
                "comparison": comparison,
                "method": method,
                "best rate": f"{best:g}" if is_learnt else "–",
                "metric": peak,
                "can be raised to": f"{edge}{highest:g}" if is_learnt else "–",
                "by a factor of": f"{edge}{highest / best:.3g}" if is_learnt else "–",
                "failed runs": int(own["failed"].sum()),
            }
        )
    return pd.DataFrame(rows)


def draw(runs: pd.DataFrame, chance: float, path: Path) -> None:
    """Draw mean and range of the seeds against the rate, a panel per comparison."""
    comparisons = list(runs["comparison"].unique())
    methods = list(runs["method"].unique())
    columns = len(comparisons) if len(comparisons) <= 3 else min(MOST_COLUMNS, math.ceil(math.sqrt(len(comparisons))))
    rows = math.ceil(len(comparisons) / columns)
    figure = Figure(figsize=(max(6.0, 4.4 * columns), 0.9 + 3.2 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
    for axis, comparison in zip(grid, comparisons, strict=False):
        _draw_panel(axis, runs[runs["comparison"] == comparison], methods, chance)
        axis.set_title(comparison, fontsize=10.5)
        axis.set(xlabel="learning rate", ylabel="validation metric")
        axis.tick_params(labelbottom=True)
    for axis in figure.axes[len(comparisons) :]:
        axis.set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6, 3 * columns), frameon=False)
    figure.savefig(path, dpi=110)


def _draw_panel(axis: Axes, runs: pd.DataFrame, methods: list[str], chance: float) -> None:
    for number, method in enumerate(methods):
        by_rate = runs[runs["method"] == method].groupby("rate")["metric"]
        mean, color, marker = by_rate.mean(), COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
        axis.plot(mean.index, mean, color=color, marker=marker, markersize=4, linewidth=1.6, label=method)
        axis.fill_between(mean.index, by_rate.min(), by_rate.max(), color=color, alpha=0.13, linewidth=0)
    axis.axhline(chance, color="0.4", linewidth=1, linestyle=":", label="guessing")
    axis.set_xscale("log")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Read, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_folders(parser)
    parser.add_argument("--chance", type=float, default=0.0, help="the metric of guessing (%(default)s)")
    least = "what a method that has learnt is above guessing, at least (%(default)s)"
    parser.add_argument("--least", type=float, default=0.03, help=least)
    parser.add_argument("--out", type=Path, default=Path("results/rates"), help="folder (%(default)s)")
    options = parser.parse_args()
    check_folders(parser, options.folders, "runs.csv")
    runs = pd.concat([read(folder, options.chance) for folder in options.folders])
    table = tabulate(runs, options.chance, options.least)
    print(table.to_markdown(index=False, floatfmt=".3f", disable_numparse=[2, 4, 5]))
    options.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.out / "rates.csv", index=False, float_format="%.4g")
    draw(runs, options.chance, options.out / "rates.png")
    print(f"See {options.out / 'rates.png'}")


if __name__ == "__main__":
    main()
