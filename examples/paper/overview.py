"""The results of several comparisons side by side: a picture of all differences, and a Markdown table of each.

python -m examples.paper.run
python -m examples.paper.overview results/paper/small/*
"""

import argparse
import math
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.paper.comparisons import COLORS, add_folders, check_folders

Summary = dict[str, dict[str, Any]]  # a row of `summary.csv` by method
LAST = "stopped_early"


def read(folder: Path) -> Summary:
    """Return the summary of a comparison."""
    rows = pd.read_csv(folder / "summary.csv").to_dict("records")
    return {str(row["method"]): {str(key): value for key, value in row.items() if key != "method"} for row in rows}


def show(summary: Summary) -> pd.DataFrame:
    """Return the selected setting, the reported metric with interval and difference, and the other metrics, as text."""
    rows = []
    for method, row in summary.items():
        cells = {"method": f"`{method}`", "setting": row["setting"], "test": f"{row['test']:.3f}"}
        cells["95% interval"] = _interval(row["test_low"], row["test_high"], "")
        cells["difference"] = "" if pd.isna(row["difference"]) else _number(row["difference"], "+")
        cells["95% interval "] = _interval(row["difference_low"], row["difference_high"], "+")
        cells["p (Holm)"] = "" if pd.isna(row["p_holm"]) else f"{row['p_holm']:.2g}"
        for metric in list(row)[list(row).index(LAST) + 1 :]:
            cells[metric.removeprefix("test_")] = f"{row[metric]:.3f}"
        rows.append(cells)
    return pd.DataFrame(rows)


def _interval(low: float, high: float, sign: str) -> str:
    return "" if pd.isna(low) else f"{_number(low, sign)} to {_number(high, sign)}"


def _number(value: float, sign: str) -> str:
    return f"{value:{sign}.3f}".replace("-", "−")


def draw(summaries: dict[str, Summary], path: Path) -> None:
    """Draw the differences to the baseline with their 95% intervals, a panel per comparison."""
    columns = min(3, len(summaries))
    rows = math.ceil(len(summaries) / columns)
    methods = list(dict.fromkeys(method for summary in summaries.values() for method in summary))
    compared = {m for summary in summaries.values() for m, row in summary.items() if pd.notna(row["difference"])}
    shown = [method for method in methods if method in compared]
    size = (1.6 + 3.6 * columns, 0.5 + (1.0 + 0.32 * len(shown)) * rows)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False).flat
    for axis, (name, summary) in zip(grid, summaries.items(), strict=False):
        _draw_panel(axis, summary, shown, [COLORS[methods.index(method) % len(COLORS)] for method in shown])
        axis.set_title(name, fontsize=10)
    for axis in figure.axes[len(summaries) :]:
        axis.set_visible(False)
    figure.supxlabel("difference to the baseline, with its 95% interval", fontsize=10)
    figure.savefig(path, dpi=110)


def _draw_panel(axis: Axes, summary: Summary, methods: list[str], colors: list[str]) -> None:
    axis.axvline(0, color="#333333", linewidth=1)
    sizes = [abs(row[f"difference{end}"]) for row in summary.values() for end in ("_low", "", "_high")]
    reach = max((size for size in sizes if 0 < size < math.inf), default=1.0)
    for height, (method, color) in enumerate(zip(methods, colors, strict=True)):
        if method in summary and not math.isnan(summary[method]["difference"]):
            low, middle, high = (summary[method][f"difference{end}"] for end in ("_low", "", "_high"))
            ends = [max(low, -2 * reach), min(high, 2 * reach)]  # an interval may be infinite
            axis.plot(ends, [height, height], color=color, linewidth=2.2, solid_capstyle="round")
            axis.plot([middle], [height], "D", color=color, markersize=7)
    axis.set_xlim(-1.08 * reach, 1.08 * reach)
    axis.set_yticks(range(len(methods)), methods)
    axis.set_ylim(len(methods) - 0.5, -0.5)
    axis.locator_params(axis="x", nbins=6)
    axis.tick_params(labelsize=8.5)
    axis.grid(alpha=0.25, axis="x")
    axis.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Read, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_folders(parser)
    parser.add_argument("--out", type=Path, default=Path("results/overview.png"), help="picture (%(default)s)")
    options = parser.parse_args()
    check_folders(parser, options.folders, "summary.csv")
    summaries = {folder.name: read(folder) for folder in options.folders}
    for name, summary in summaries.items():
        print(f"\n## {name}\n\n{show(summary).to_markdown(index=False, disable_numparse=True)}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    draw(summaries, options.out)
    print(f"\nSee {options.out}")


if __name__ == "__main__":
    main()
