"""The pictures of a report: differences, the selection, curves."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lightning_znorm.compare.question.candidates import are_numbers
from lightning_znorm.compare.question.directions import Mode
from lightning_znorm.compare.question.syntax import format_value
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

_LEFT, _RIGHT, _TOP, _HEIGHT, _BOTTOM = 50.0, WIDTH - 14.0, 30.0, 250.0, 44.0  # of a panel
_ROW = 58.0  # of a method's differences
_MOST_POINTS = 150  # of a curve
_REACH = 3.0  # of an axis, as a multiple of the median distance from the best value


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
    x, places, ticks = _place_values(list(trials["x"]))
    trials = trials.assign(place=[places[format_value(value)] for value in trials["x"]])
    means = factor * trials["mean"].dropna()
    if means.empty:
        return None
    chosen = trials[trials["selected"]] if trials["selected"].any() else trials
    spread = factor * chosen[["mean", "low", "high"]].to_numpy(dtype=float)
    y = _scale_metric(means.to_numpy(), mode, list(spread[np.isfinite(spread)]))
    drawing = _start_panel(name, len(shown), labels, x, y, ticks, key, f"{metric}{unit.heading}")
    for number, label in enumerate(shown):
        own = trials[trials["method"] == label].sort_values("place")
        aside = (number - (len(shown) - 1) / 2) * min(4.0, 20 / len(shown))  # so that ranges do not hide one another
        with drawing.group(classes[label], aside=aside):
            _draw_trials(drawing, x, y, label, own, classes[label], factor, unit, key)
    _add_legend(drawing, shown, classes)
    return drawing.render(f"{metric} against {key}", len(labels))


def _place_values(values: Sequence[Any]) -> tuple[Scale, dict[str, float], list[tuple[float, str]]]:
    """Return the axis of swept values, the place of each by its text, and the ticks."""
    texts = list(dict.fromkeys(map(format_value, values)))
    if are_numbers(values):
        numbers = {format_value(value): float(value) for value in values}
        low, high = min(numbers.values()), max(numbers.values())
        if low > 0 and high >= 5 * low:
            axis = Scale(low / 1.25, high * 1.25, _LEFT + 6, _RIGHT - 6, is_logarithmic=True)
        else:
            room = 0.06 * (high - low) or abs(high) or 1.0
            axis = Scale(low - room, high + room, _LEFT + 6, _RIGHT - 6)
        return axis, numbers, [(tick, format_tick(tick)) for tick in axis.list_ticks()]
    places = {text: float(number) for number, text in enumerate(texts)}
    width = (_RIGHT - _LEFT) / len(texts) - 6
    axis = Scale(-0.5, len(texts) - 0.5, _LEFT, _RIGHT)
    return axis, places, [(place, shorten(text, width)) for text, place in places.items()]


def _scale_metric(values: "np.ndarray[Any, Any]", mode: str, held: Sequence[float], log: bool = False) -> Scale:
    """Return the axis of a metric, on which values far from the best are cut off, but none that is to be held."""
    sign = 1 if mode == "max" else -1
    best = float(values.max() if mode == "max" else values.min())
    distance = sign * (best - values)
    farthest = float(distance.max())
    if not log:
        farthest = min(farthest, _REACH * float(np.median(distance)) or farthest)
    ends = [best, best - sign * farthest, *held]
    low, high = min(ends), max(ends)
    if log:
        return Scale(low / 1.1, high * 1.1, _TOP + _HEIGHT, _TOP, is_logarithmic=True)
    room = 0.07 * (high - low) or 0.05 * abs(high) or 1.0
    return Scale(low - room, high + room, _TOP + _HEIGHT, _TOP)


def _start_panel(
    name: str,
    shown: int,
    labels: Sequence[str],
    x: Scale,
    y: Scale,
    ticks: Sequence[tuple[float, str]],
    x_label: str,
    y_label: str,
) -> Drawing:
    """Return a drawing with axes, and room for a legend."""
    floor = _TOP + _HEIGHT
    drawing = Drawing(floor + _BOTTOM + 20 * math.ceil(shown / 2) + 6, name)
    for tick in y.list_ticks():
        drawing.add("line", x1=_LEFT, x2=_RIGHT, y1=y(tick), y2=y(tick), css="grid")
        drawing.write(_LEFT - 6, y(tick) + 4.5, format_tick(tick), anchor="end")
    drawing.add("line", x1=_LEFT, x2=_RIGHT, y1=floor, y2=floor, css="axis")
    for tick, text in ticks:
        drawing.add("line", x1=x(tick), x2=x(tick), y1=floor, y2=floor + 4, css="axis")
        drawing.write(x(tick), floor + 18, text, anchor="middle")
    drawing.write(8, 16, shorten(y_label, WIDTH - 16), css="ink")
    drawing.write((_LEFT + _RIGHT) / 2, floor + 36, shorten(x_label, WIDTH - 60), css="ink", anchor="middle")
    return drawing


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
            drawing.write(at, _TOP + _HEIGHT - 4, "×", css="fill mark", anchor="middle", title=title)
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
    y = _scale_metric(means, mode, [float(line["mean"].iloc[-1]) for line in lines.values()], is_log)
    first, last = float(curves[axis].min()), float(curves[axis].max())
    x = Scale(first, last, _LEFT + 6, _RIGHT - 6) if last > first else Scale(first - 1, last + 1, _LEFT, _RIGHT)
    ticks = [(tick, format_tick(tick)) for tick in x.list_ticks() if tick == round(tick)]
    drawing = _start_panel(name, len(shown), labels, x, y, ticks, axis, f"{metric}{unit.heading}")
    with drawing.group(clip=(_LEFT, _TOP, _RIGHT - _LEFT, _HEIGHT)):
        for label in shown:
            with drawing.group(classes[label]):
                _draw_line(drawing, x, y, label, lines[label], classes[label], is_alone=len(shown) <= 10)
    _add_legend(drawing, shown, classes)
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


def _add_legend(drawing: Drawing, shown: Sequence[str], classes: Mapping[str, str]) -> None:
    """Add the methods in two columns below the panel."""
    with drawing.group("legend"):
        for number, label in enumerate(shown):
            left = 14 + number % 2 * (WIDTH / 2)
            top = _TOP + _HEIGHT + _BOTTOM + 20 * (number // 2) + 8
            with drawing.group(classes[label]):
                dash = find_dash(classes[label])
                drawing.add("line", x1=left, x2=left + 22, y1=top, y2=top, css="line", stroke_dasharray=dash)
                drawing.add("circle", cx=left + 11, cy=top, r=4, css="fill")
                drawing.write(left + 30, top + 4.5, shorten(label, WIDTH / 2 - 50), css="ink")
