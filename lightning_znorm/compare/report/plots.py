"""The pictures of a report."""

import math
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lightning_znorm.compare.question.candidates import are_numbers
from lightning_znorm.compare.question.plan import format_values, shorten_keys
from lightning_znorm.compare.question.question import Question
from lightning_znorm.compare.question.syntax import format_value
from lightning_znorm.compare.report.tables import map_seeds_to_tests
from lightning_znorm.compare.report.verdicts import Unit

_COLORS = ("#5f6b7a", "#2a78b8", "#3a9a52", "#d9480f", "#8250a8", "#b8860b", "#c2185b", "#00838f", "#6d4c41", "#9e9d24")
_MARKERS = "osD^vP*Xph"
_LINES = ("-", "--", ":")
_MAX_PANELS = 6
_MAX_BANDS = 10
_CHARACTERS_PER_INCH = 11.5


def plot_curves(
    question: Question, summary: pd.DataFrame, curves: pd.DataFrame, losses: pd.DataFrame, unit: Unit, axis: str
) -> Figure:
    """Draw validation metric and training loss at each method's selected setting: mean and range of the seeds."""
    metric = f"{question.monitor}{unit.heading}, {question.direction}"
    panels = [(curves, metric, 100 if unit.is_share else 1, axis)]
    if len(losses):
        panels.append((losses, "training loss", 1, "epoch"))
    figure = Figure(figsize=(5.6 * len(panels), 4.2), layout="constrained")
    methods = summary.index[summary["seeds"] > 0]
    for position, (frame, label, scale, time) in enumerate(panels, start=1):
        panel = figure.add_subplot(1, len(panels), position)
        for method in methods:
            number = summary.loc[method, "setting"]
            rows = frame[(frame["method"] == method) & (frame["setting"] == number)]
            seeds = rows.assign(value=rows["value"] * scale).groupby(time)["value"]
            mean, low, high = seeds.mean(), seeds.min(), seeds.max()
            style = _choose_style(question, method)
            setting = str(question.settings[number])
            name = f"{method} ({setting})" if setting else str(method)
            if len(mean) > 30:
                style["marker"] = ""
            panel.plot(mean.index, mean, **style, markersize=4.5, linewidth=1.8, label=_escape(name))
            if len(methods) <= _MAX_BANDS:
                panel.fill_between(mean.index, low, high, color=style["color"], alpha=0.15, linewidth=0)
        panel.set(xlabel=time, ylabel=_escape(label))
        if frame[time].nunique() == 1:
            panel.set_xlim(frame[time].iloc[0] - 0.5, frame[time].iloc[0] + 0.5)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        if label == "training loss" and (frame["value"].dropna() > 0).all():
            panel.set_yscale("log")
        _tidy(panel)
    _add_legend(figure)
    figure.suptitle(_make_curves_title(question, summary))
    return figure


def _make_curves_title(question: Question, summary: pd.DataFrame) -> str:
    title = "All methods at one shared setting" if question.has_one_setting else "Each method at its selected setting"
    counts = summary.loc[summary["seeds"] > 0, "seeds"]
    low, high = (int(counts.min()), int(counts.max())) if len(counts) else (0, 0)
    if high < 2:
        return f"{title}: one seed" if high else title
    statistics = "mean" if len(counts) > _MAX_BANDS else "mean and range"
    return f"{title}: {statistics} of {high if low == high else f'{low} to {high}'} seeds"


def plot_sweep(question: Question, settings: pd.DataFrame, unit: Unit) -> Figure | None:
    """Draw the validation metric against the first swept key, a panel per combination of the others."""
    if question.has_one_setting:
        return None
    first = next(iter(question.sweep))
    name = shorten_keys(question.sweep)[0]
    others = settings["setting"].map(lambda number: format_values(_drop_key(question.settings[number].values, first)))
    combinations = list(settings.groupby(others, sort=False))[:_MAX_PANELS]
    columns = min(3, len(combinations))
    rows = math.ceil(len(combinations) / columns)
    figure = Figure(figsize=(max(6.4, 4.6 * columns), 4.3 * rows), layout="constrained")
    shared: Axes | None = None
    for number, (combination, frame) in enumerate(combinations, start=1):
        axis = figure.add_subplot(rows, columns, number, sharey=shared)
        shared = shared or axis
        _draw_sweep(axis, question, frame, first, unit)
        axis.set(xlabel=_escape(name), ylabel=_escape(f"{question.monitor}{unit.heading}, {question.direction}"))
        axis.set_title(_escape(combination), fontsize=10)
        _tidy(axis)
    _add_legend(figure)
    failed = "; x: runs failed" if (settings["failed"] > 0).any() else ""
    figure.suptitle(f"Mean and range of the seeds; ringed: selected{failed}", fontsize=11)
    return figure


def _draw_sweep(axis: Axes, question: Question, frame: pd.DataFrame, key: str, unit: Unit) -> None:
    scale = 100 if unit.is_share else 1
    values = question.sweep[key]
    has_numbers = are_numbers(values)
    places = [float(value) if has_numbers else float(number) for number, value in enumerate(values)]
    is_logarithmic = has_numbers and min(places) > 0 and max(places) >= 5 * min(places)
    failures: list[tuple[float, str]] = []
    for number, method in enumerate(question.labels):
        rows = frame[frame["method"] == method]
        swept = [question.settings[number].values[key] for number in rows["setting"]]
        rows = rows.assign(_x=[places[values.index(value)] for value in swept]).sort_values("_x")
        # methods side by side
        offset, width = number - (len(question.labels) - 1) / 2, (max(places) - min(places)) or 1
        x = rows["_x"] * 1.03**offset if is_logarithmic else rows["_x"] + offset * 0.012 * width
        style = _choose_style(question, method)
        color, mean = style["color"], rows["mean"] * scale
        error = [mean - rows["low"] * scale, rows["high"] * scale - mean]
        widths: dict[str, Any] = {"markersize": 5.5, "linewidth": 1.8, "elinewidth": 1.1, "capsize": 2.5}
        axis.errorbar(x, mean, yerr=error, **style, **widths, label=_escape(method))
        selected = rows["selected"].to_numpy()
        axis.scatter(x[selected], mean[selected], s=170, facecolors="none", edgecolors=color, linewidths=1.6, zorder=4)
        failures += [(position, color) for position in x[(rows["failed"] > 0).to_numpy()]]
    if failures:
        positions, colors = zip(*failures, strict=True)
        bottom = axis.get_xaxis_transform()
        axis.scatter(positions, [0.03] * len(failures), marker="x", c=colors, transform=bottom, zorder=5)
    if is_logarithmic:
        axis.set_xscale("log")
    if len(values) <= 8:
        axis.set_xticks(places, [_escape(format_value(value)) for value in values])
        axis.minorticks_off()


def plot_differences(question: Question, summary: pd.DataFrame, runs: pd.DataFrame, unit: Unit) -> Figure | None:
    """Draw the differences to the baseline with their 95% intervals, and a dot per seed, if there are any."""
    methods = [method for method in summary.index if method != question.baseline and summary.loc[method, "paired"] > 0]
    if not methods:
        return None
    scale = 100 if unit.is_share else 1
    figure = Figure(figsize=(7.6, 1.5 + 0.75 * len(methods)), layout="constrained")
    axis = figure.add_subplot()
    axis.axvline(0, color="#333333", linewidth=1)
    settings = summary["setting"]
    baseline = map_seeds_to_tests(runs, question.baseline, settings[question.baseline])
    dots: list[float] = []
    for height, method in enumerate(reversed(methods)):
        row, color = summary.loc[method], _choose_style(question, method)["color"]
        tests = map_seeds_to_tests(runs, method, settings[method])
        seeds = [scale * (test - baseline[seed]) for seed, test in tests.items() if seed in baseline]
        dots += seeds
        axis.scatter(seeds, [height - 0.2] * len(seeds), color=color, alpha=0.6, s=26, linewidths=0, zorder=2)
        if pd.notna(row["difference_low"]):
            ends = [scale * row["difference_low"], scale * row["difference_high"]]
            axis.plot(ends, [height, height], color=color, linewidth=2.4, solid_capstyle="round", zorder=3)
        axis.scatter([scale * row["difference"]], [height], color=color, s=75, marker="D", zorder=4)
    # the intervals of two seeds would be too wide to show anything else
    reach = max([abs(dot) for dot in dots] + [1e-12])
    widest = scale * summary[["difference_low", "difference_high"]].abs().max().max()
    limit = min(1.1 * max(reach, widest if pd.notna(widest) else 0.0), 6 * reach)
    axis.set_xlim(-limit, limit)
    axis.set_yticks(range(len(methods)), [_escape(method) for method in reversed(methods)])
    axis.set_ylim(-0.6, len(methods) - 0.4)
    points = "points" if unit.is_share else "difference"
    better = "right" if question.mode == "max" else "left"
    axis.set_xlabel(_escape(f"{question.test_monitor}: {points} against {question.baseline} ({better} is better)"))
    figure.suptitle("Difference to the baseline: mean, 95% interval, and a dot per seed", fontsize=11)
    _tidy(axis)
    axis.grid(visible=False, axis="y")
    return figure


def _choose_style(question: Question, method: Any) -> dict[str, Any]:
    number = question.labels.index(method)
    rounds, shades = divmod(number, len(_COLORS))
    return {
        "color": _COLORS[shades],
        "marker": _MARKERS[(shades + rounds // len(_LINES)) % len(_MARKERS)],
        "linestyle": _LINES[rounds % len(_LINES)],
    }


def _escape(text: object) -> str:
    """Escape a text in which Matplotlib finds no mathematics, and no `_` that hides it from the legend."""
    escaped = " ".join(str(text).split()).replace("$", r"\$")
    return f" {escaped}" if escaped.startswith("_") else escaped


def _drop_key(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != key}


def _tidy(axis: Axes) -> None:
    axis.grid(alpha=0.25, linewidth=0.8)
    axis.spines[["top", "right"]].set_visible(False)


def _add_legend(figure: Figure) -> None:
    """Add a legend below the plots, and the height of its rows to the figure."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if not labels:
        return
    room = figure.get_figwidth() * _CHARACTERS_PER_INCH / (max(map(len, labels)) + 6)
    columns = max(1, min(len(labels), 6, int(room)))
    figure.set_figheight(figure.get_figheight() + 0.23 * (math.ceil(len(labels) / columns) - 1))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)


def render(figure: Figure) -> bytes:
    """Return a figure as PNG."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()
