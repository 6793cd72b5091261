"""Which learning rates work with each method, from the lowest to the highest?

Reads the results of comparisons that sweep one learning rate, draws the validation metric (the larger the better)
against the rate for each of them, and tabulates the working range of each method: the best rate, the metric there, the
lowest and the highest rate of the range around it, and the factor between them. A rate works if the mean over the seeds
is at least half as far above guessing as at the best one; a run that fails or diverges has learned nothing. Where the
range ends with the sweep, it may go on: the rate is marked with ≤ or ≥, and so is the factor.

Means that differ by less than a millionth are tied, and all tied rates are named; if a rate between them does not work,
each of their ranges has a row. A method that learns nothing at any rate has no range.

    python -m examples.paper.run depth --optimizers sgd
    python -m examples.paper.rates results/paper/small/depth-*-sgd --chance 0.1
"""

import argparse
import math
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.paper.comparisons import COLORS, add_folders, check_folders
from lightning_znorm.compare.question.candidates import RESOLUTION

RATE = "init_args.lr"
MARKERS = "osD^vP"
MOST_COLUMNS = 4
COLUMNS = ["comparison", "method", "best rate", "metric", "lowest", "highest", "factor", "failed runs"]


def read(folder: Path, chance: float) -> pd.DataFrame:
    """Return the validation metric of each run of a comparison; that of one that came to nothing is ``chance``.

    Raises:
        ValueError: If the comparison does not sweep the learning rate.

    """
    runs = pd.read_csv(folder / "runs.csv")
    if "stage" in runs:
        runs = runs[runs["stage"] == "selection"]
    keys = [*runs.columns[runs.columns.str.endswith(RATE)]]
    if len(keys) != 1:
        raise ValueError(f"{folder / 'runs.csv'} has {len(keys)} columns …{RATE!r}, not one: see what was swept.")
    failed = runs["validation"].isna()
    return pd.DataFrame(
        {
            "comparison": folder.name,
            "method": runs["method"],
            "rate": runs[keys[0]],
            "metric": runs["validation"].fillna(chance),
            "failed": failed,
        }
    )


def tabulate(runs: pd.DataFrame, chance: float, least: float) -> pd.DataFrame:
    """Return the working ranges by comparison and method: one, or more if there are tied rates in several.

    A best metric of less than ``chance + least`` is nothing.
    """
    rows = []
    for (comparison, method), own in runs.groupby(["comparison", "method"], sort=False):
        means = own.groupby("rate")["metric"].mean()
        peak = float(means.max())
        slack = RESOLUTION * abs(peak)
        best = means.index[means >= peak - slack]
        works = means - chance >= 0.5 * (peak - chance) - slack
        ranges = [part.index for _, part in means[works].groupby((~works).cumsum()[works])]
        cells = [describe_range(rates, best, means.index) for rates in ranges if rates.isin(best).any()]
        if peak < chance + least - slack:
            cells = [dict.fromkeys(cells[0], "–")]
        known = {"comparison": comparison, "method": method, "metric": peak, "failed runs": int(own["failed"].sum())}
        rows += [known | of for of in cells]
    return pd.DataFrame(rows)[COLUMNS]


def describe_range(rates: pd.Index, best: pd.Index, swept: pd.Index) -> dict[str, str]:
    """Return the cells of a range, of which an end that is an end of the sweep may not be the true one."""
    below, above = ("≤ " if rates[0] == swept[0] else ""), ("≥ " if rates[-1] == swept[-1] else "")
    return {
        "best rate": ", ".join(f"{rate:g}" for rate in best[best.isin(rates)]),
        "lowest": f"{below}{rates[0]:g}",
        "highest": f"{above}{rates[-1]:g}",
        "factor": f"{'≥ ' if below or above else ''}{float(f'{rates[-1] / rates[0]:.2g}'):g}",
    }


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
    least = "what a method that has learned is above guessing, at least (%(default)s)"
    parser.add_argument("--least", type=float, default=0.03, help=least)
    parser.add_argument("--out", type=Path, default=Path("results/rates"), help="folder (%(default)s)")
    options = parser.parse_args()
    check_folders(parser, options.folders, "runs.csv")
    runs = pd.concat([read(folder, options.chance) for folder in options.folders])
    table = tabulate(runs, options.chance, options.least)
    print(table.to_markdown(index=False, floatfmt=".3f", disable_numparse=[2, 4, 5, 6]))
    options.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.out / "rates.csv", index=False, float_format="%.4g")
    draw(runs, options.chance, options.out / "rates.png")
    print(f"See {options.out / 'rates.png'}")


if __name__ == "__main__":
    main()
