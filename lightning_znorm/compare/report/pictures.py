"""The pictures of a report: differences, the selection, curves."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lightning_znorm.compare.question.directions import Mode
from lightning_znorm.compare.question.syntax import format_value
from lightning_znorm.compare.report.panels import (
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    add_legend,
    place_values,
    scale_metric,
    start_panel,
)
from lightning_znorm.compare.report.svg import (
    WIDTH,
    Drawing,
    Scale,
    add_arrow,
    find_dash,
    format_tick,
    make_classes,
    measure,
    shorten,
)
from lightning_znorm.compare.report.units import Unit

_ROW = 58.0  # of a method's differences
_MOST_POINTS = 150  # of a curve


def draw_differences(
    differences: pd.DataFrame,
    intervals: pd.DataFrame,
    labels: Sequence[str],
    baseline: str,
    metric: str,
    mode: Mode,
    unit: Unit,
    margin: float | None,
) -> str | None:
    """Draw the difference of each pair, their mean and its interval, in a row per method.

    Args:
        differences: A row per pair: ``method``, ``seed``, ``difference``.
        intervals: ``mean``, ``low``, ``high`` and ``answer`` by method.
        labels: Labels of the methods.
        baseline: Label of the baseline.
        metric: Name of the metric.
        mode: Whether more is better.
        unit: Format of the metric.
        margin: The smallest difference that matters.

    Returns:
        The picture, ``None`` without a difference.

    """
    factor = 100 if unit.is_share else 1
    shown = [label for label in labels if label in {*differences["method"]}]
    values = factor * differences["difference"].to_numpy(dtype=float)
    finite = values[np.isfinite(values)]
    if not len(finite):
        return None
    ends = factor * intervals[["low", "high"]].to_numpy(dtype=float)
    reach = _find_reach(finite, ends[np.isfinite(ends)], None if margin is None else factor * margin)
    classes, height = make_classes(labels, baseline), 30 + _ROW * len(shown)
    drawing, x = Drawing(height + 56, "differences"), Scale(-reach, reach, 22, WIDTH - 22)
    if margin is not None:
        left, right = x(-factor * margin), x(factor * margin)
        title = f"within the margin of {unit.format_difference(margin)}"
        drawing.add("rect", title=title, x=left, y=24.0, width=right - left, height=height - 24, css="zone")
    for tick in x.list_ticks():
        drawing.add("line", x1=x(tick), x2=x(tick), y1=24.0, y2=height, css="axis" if not tick else "grid")
        drawing.write(x(tick), height + 18, format_tick(tick), anchor="middle")
    better, worse = ("better →", "← worse") if mode == "max" else ("worse →", "← better")
    drawing.write(WIDTH - 8, 15, better, anchor="end")
    drawing.write(8, 15, worse)
    for number, label in enumerate(shown):
        own = differences[differences["method"] == label]
        with drawing.group(classes[label]):
            interval: pd.Series[Any] = intervals[intervals.index == label].iloc[0]
            _draw_difference_row(drawing, x, 30 + _ROW * number, label, own, interval, factor, unit)
    points = "points" if unit.is_share else "difference"
    text = shorten(f"{metric}: {points} against {baseline}", WIDTH - 20)
    drawing.write(WIDTH / 2, height + 42, text, anchor="middle")
    return drawing.render(f"{metric}: differences to {baseline}", len(labels))


def _find_reach(values: "np.ndarray[Any, Any]", ends: "np.ndarray[Any, Any]", margin: float | None) -> float:
    """Return how far the axis of differences reaches: no outlier, and no interval of few pairs, ruins it."""
    sizes = np.abs(values)
    most = 1.3 * float(np.quantile(sizes, 0.9)) or float(sizes.max()) or 1.0
    seen = [size for size in (*sizes, *np.abs(ends)) if size <= 2 * most]
    return 1.08 * float(max([*seen, min(margin or 0.0, 3 * most)]) or most)


def _draw_difference_row(
    drawing: Drawing,
    x: Scale,
    top: float,
    label: str,
    differences: pd.DataFrame,
    interval: "pd.Series[Any]",
    factor: float,
    unit: Unit,
) -> None:
    answer = interval["answer"] if isinstance(interval["answer"], str) else ""
    drawing.write(8, top + 15, shorten(label, (WIDTH - 40 - measure(answer)) / 1.2), css="strong")
    drawing.write(WIDTH - 8, top + 15, answer, css="ink", anchor="end")
    line, dots = top + 28, top + 44
    for seed, value in zip(differences["seed"], factor * differences["difference"], strict=True):
        title = f"{label}, seed {seed}: {unit.format_signed(value / factor)}"
        if x.holds(value):
            drawing.add("circle", title=title, cx=x(value), cy=dots, r=4.5, css="soft mark")
        elif not math.isnan(value):
            add_arrow(drawing, x(value), dots, "right" if value > 0 else "left", "", title)
    low, mean, high = (factor * float(interval[name]) for name in ("low", "mean", "high"))
    if math.isnan(mean):
        return
    text = unit.format_difference_interval(interval["low"], interval["high"])
    title = f"{label}: {unit.format_signed(interval['mean'])} (95% interval {text})"
    drawing.add("line", title=title, x1=x(low), x2=x(high), y1=line, y2=line, css="line", stroke_width=3)
    for end, direction in ((low, "left"), (high, "right")):
        if not x.holds(end):
            add_arrow(drawing, x(end), line, direction, "", title)
    if not x.holds(mean):
        return
    middle = x(mean)
    points = f"{middle - 7:.1f},{line} {middle:.1f},{line - 7} {middle + 7:.1f},{line} {middle:.1f},{line + 7}"
    drawing.add("polygon", title=title, points=points, css="fill mark")


def draw_sweep(
    trials: pd.DataFrame,
    labels: Sequence[str],
    baseline: str,
    key: str,
    metric: str,
    mode: Mode,
    unit: Unit,
    name: str = "sweep",
) -> str | None:
    """Draw the validation metric against a swept value, a line per method; the selected setting has a ring.

    Args:
        trials: A row per method and value: ``method``, ``x``, ``mean``, ``low``, ``high``, ``seeds``, ``failed``,
            ``selected``, ``unsettled``.
        labels: Labels of the methods.
        baseline: Label of the baseline.
        key: Name of the swept key.
        metric: Name of the metric.
        mode: Whether more is better.
        unit: Format of the metric.
        name: Name that no other picture of a page has.

    """
    factor, classes = 100 if unit.is_share else 1, make_classes(labels, baseline)
    shown = [label for label in labels if label in {*trials["method"]}]
    x, places, ticks = place_values(list(trials["x"]))
    trials = trials.assign(place=[places[format_value(value)] for value in trials["x"]])
    means = factor * trials["mean"].dropna()
    if means.empty:
        return None
    chosen = trials[trials["selected"]] if trials["selected"].any() else trials
    spread = factor * chosen[["mean", "low", "high"]].to_numpy(dtype=float)
    y = scale_metric(means.to_numpy(), mode, list(spread[np.isfinite(spread)]))
    drawing = start_panel(name, len(shown), x, y, ticks, key, f"{metric}{unit.heading}")
    for number, label in enumerate(shown):
        own = trials[trials["method"] == label].sort_values("place")
        aside = (number - (len(shown) - 1) / 2) * min(4.0, 20 / len(shown))  # so that ranges do not hide one another
        with drawing.group(classes[label], aside=aside):
            _draw_trials(drawing, x, y, label, own, classes[label], factor, unit, key)
    add_legend(drawing, shown, classes)
    return drawing.render(f"{metric} against {key}", len(labels))


def _draw_trials(
    drawing: Drawing,
    x: Scale,
    y: Scale,
    label: str,
    trials: pd.DataFrame,
    css: str,
    factor: float,
    unit: Unit,
    key: str,
) -> None:
    measured = trials[trials["mean"].notna()]
    points = " ".join(
        f"{x(place):.1f},{y(value):.1f}"
        for place, value in zip(measured["place"], factor * measured["mean"], strict=True)
    )
    drawing.add("polyline", points=points, css="line", stroke_dasharray=find_dash(css))
    for _, row in trials.iterrows():
        at, text = x(row["place"]), f"{label}, {key}={format_value(row['x'])}"
        if row["failed"]:
            title = f"{text}: {row['failed']} of {row['seeds']} runs have no metric"
            drawing.write(at, TOP + HEIGHT - 4, "×", css="fill mark", anchor="middle", title=title)
            continue
        value, low, high = (factor * row[name] for name in ("mean", "low", "high"))
        seeds = f", {row['seeds']} seeds" if row["seeds"] > 1 else ""
        title = f"{text}: {unit.format(row['mean'])}{seeds}"
        if not y.holds(value):
            add_arrow(drawing, at, y(value), "down" if value < y.low else "up", "", title)
            continue
        drawing.add("line", x1=at, x2=at, y1=y(low), y2=y(high), css="thin")
        drawing.add("circle", title=title, cx=at, cy=y(value), r=4, css="fill mark")
        if row["selected"]:
            note = ", selected" + (", at an end of what was tried" if row["unsettled"] else "")
            drawing.add("circle", title=title + note, cx=at, cy=y(value), r=9, css="ring")


def draw_curves(
    curves: pd.DataFrame,
    labels: Sequence[str],
    baseline: str,
    metric: str,
    mode: Mode,
    unit: Unit,
    axis: str,
    name: str = "curves",
) -> str | None:
    """Draw a metric while training: mean and range of the seeds of each method.

    Args:
        curves: A row per validation: ``method``, ``seed``, ``epoch``, ``step``, ``value``.
        labels: Labels of the methods.
        baseline: Label of the baseline.
        metric: Name of the metric.
        mode: Whether more is better.
        unit: Format of the metric.
        axis: ``"epoch"`` or ``"step"``.
        name: Name that no other picture of a page has.

    """
    factor, classes = 100 if unit.is_share else 1, make_classes(labels, baseline)
    curves = curves.dropna(subset=["value"]).assign(value=lambda frame: factor * frame["value"])
    if curves.empty:
        return None
    shown = [label for label in labels if label in {*curves["method"]}]
    seeds = {label: curves[curves["method"] == label].groupby(axis)["value"] for label in shown}
    lines: Mapping[str, pd.DataFrame] = {
        label: pd.DataFrame({"mean": own.mean(), "low": own.min(), "high": own.max()}) for label, own in seeds.items()
    }
    means = np.concatenate([line["mean"].to_numpy() for line in lines.values()])
    is_log = name == "losses" and bool((curves["value"] > 0).all()) and means.max() > 10 * means.min()
    y = scale_metric(means, mode, [float(line["mean"].iloc[-1]) for line in lines.values()], is_log)
    first, last = float(curves[axis].min()), float(curves[axis].max())
    x = Scale(first, last, LEFT + 6, RIGHT - 6) if last > first else Scale(first - 1, last + 1, LEFT, RIGHT)
    ticks = [(tick, format_tick(tick)) for tick in x.list_ticks() if tick == round(tick)]
    drawing = start_panel(name, len(shown), x, y, ticks, axis, f"{metric}{unit.heading}")
    with drawing.group(clip=(LEFT, TOP, RIGHT - LEFT, HEIGHT)):
        for label in shown:
            with drawing.group(classes[label]):
                _draw_line(drawing, x, y, label, lines[label], classes[label], is_alone=len(shown) <= 10)
    add_legend(drawing, shown, classes)
    return drawing.render(f"{metric} while training", len(labels))


def _draw_line(
    drawing: Drawing, x: Scale, y: Scale, label: str, line: pd.DataFrame, css: str, *, is_alone: bool
) -> None:
    line = line.iloc[np.unique(np.linspace(0, len(line) - 1, min(len(line), _MOST_POINTS)).round().astype(int))]
    places = [x(float(place)) for place in line.index]

    def join(values: "pd.Series[float]") -> list[str]:
        # beyond the picture, where it is cut off
        return [f"{place:.1f},{_place_beyond(y, value):.1f}" for place, value in zip(places, values, strict=True)]

    if is_alone and len(line) > 1:
        drawing.add("polygon", points=" ".join(join(line["high"]) + join(line["low"])[::-1]), css="band")
    title = f"{label}: {line['mean'].iloc[-1]:.4g} in the end"
    drawing.add(
        "polyline", title=title, points=" ".join(join(line["mean"])), css="line", stroke_dasharray=find_dash(css)
    )
    if len(line) <= 12:
        for place, value in zip(places, line["mean"], strict=True):
            drawing.add(
                "circle", title=f"{label}: {value:.4g}", cx=place, cy=_place_beyond(y, value), r=3, css="fill mark"
            )


def _place_beyond(scale: Scale, value: float) -> float:
    """Return the place of a value, a little beyond the end of the axis for one beyond it."""
    return scale(value) + (0 if scale.holds(value) else 12 if value < scale.low else -12)
