"""What the panels of pictures share: axes, and a legend below."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lightning_znorm.compare.question.candidates import are_numbers
from lightning_znorm.compare.question.syntax import format_value
from lightning_znorm.compare.report.svg import WIDTH, Drawing, Scale, find_dash, format_tick, shorten

LEFT, RIGHT, TOP, HEIGHT = 50.0, WIDTH - 14.0, 30.0, 250.0
_BOTTOM = 44.0  # for the labels of the axis
_REACH = 3.0  # of an axis, as a multiple of the median distance from the best value


def place_values(values: Sequence[Any]) -> tuple[Scale, dict[str, float], list[tuple[float, str]]]:
    """Return the axis of swept values, the place of each by its text, and the ticks."""
    texts = list(dict.fromkeys(map(format_value, values)))
    if are_numbers(values):
        numbers = {format_value(value): float(value) for value in values}
        low, high = min(numbers.values()), max(numbers.values())
        if low > 0 and high >= 5 * low:
            axis = Scale(low / 1.25, high * 1.25, LEFT + 6, RIGHT - 6, is_logarithmic=True)
        else:
            room = 0.06 * (high - low) or abs(high) or 1.0
            axis = Scale(low - room, high + room, LEFT + 6, RIGHT - 6)
        return axis, numbers, [(tick, format_tick(tick)) for tick in axis.list_ticks()]
    places = {text: float(number) for number, text in enumerate(texts)}
    width = (RIGHT - LEFT) / len(texts) - 6
    axis = Scale(-0.5, len(texts) - 0.5, LEFT, RIGHT)
    return axis, places, [(place, shorten(text, width)) for text, place in places.items()]


def scale_metric(values: "np.ndarray[Any, Any]", mode: str, held: Sequence[float], log: bool = False) -> Scale:
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
        return Scale(low / 1.1, high * 1.1, TOP + HEIGHT, TOP, is_logarithmic=True)
    room = 0.07 * (high - low) or 0.05 * abs(high) or 1.0
    return Scale(low - room, high + room, TOP + HEIGHT, TOP)


def start_panel(
    name: str,
    shown: int,
    x: Scale,
    y: Scale,
    ticks: Sequence[tuple[float, str]],
    x_label: str,
    y_label: str,
) -> Drawing:
    """Return a drawing with axes, and room for a legend."""
    floor = TOP + HEIGHT
    drawing = Drawing(floor + _BOTTOM + 20 * math.ceil(shown / 2) + 6, name)
    for tick in y.list_ticks():
        drawing.add("line", x1=LEFT, x2=RIGHT, y1=y(tick), y2=y(tick), css="grid")
        drawing.write(LEFT - 6, y(tick) + 4.5, format_tick(tick), anchor="end")
    drawing.add("line", x1=LEFT, x2=RIGHT, y1=floor, y2=floor, css="axis")
    for tick, text in ticks:
        drawing.add("line", x1=x(tick), x2=x(tick), y1=floor, y2=floor + 4, css="axis")
        drawing.write(x(tick), floor + 18, text, anchor="middle")
    drawing.write(8, 16, shorten(y_label, WIDTH - 16), css="ink")
    drawing.write((LEFT + RIGHT) / 2, floor + 36, shorten(x_label, WIDTH - 60), css="ink", anchor="middle")
    return drawing


def add_legend(drawing: Drawing, shown: Sequence[str], classes: Mapping[str, str]) -> None:
    """Add the methods in two columns below the panel."""
    with drawing.group("legend"):
        for number, label in enumerate(shown):
            left = 14 + number % 2 * (WIDTH / 2)
            top = TOP + HEIGHT + _BOTTOM + 20 * (number // 2) + 8
            with drawing.group(classes[label]):
                dash = find_dash(classes[label])
                drawing.add("line", x1=left, x2=left + 22, y1=top, y2=top, css="line", stroke_dasharray=dash)
                drawing.add("circle", cx=left + 11, cy=top, r=4, css="fill")
                drawing.write(left + 30, top + 4.5, shorten(label, WIDTH / 2 - 50), css="ink")
