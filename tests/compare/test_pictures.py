"""The pictures of reports: well-formed, robust against outliers, and the same colour for a method everywhere."""

import math
import re
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from lightning_znorm.compare.report.pictures import draw_curves, draw_differences, draw_sweep
from lightning_znorm.compare.report.svg import Scale, find_dash, format_tick, make_classes
from lightning_znorm.compare.report.units import Unit

SHARE, PLAIN = Unit(is_share=True), Unit(is_share=False)
ODD = ["none", "<b>&\"'</b>", "$x$ `y` \n z", "ünï" * 40]


def parse(svg):
    """The elements of a picture, with the namespace left out."""
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert svg.count("http") == 1
    assert "nan" not in re.sub(r"<title>.*?</title>|<text.*?</text>", "", svg)
    return [(element.tag.rpartition("}")[2], element) for element in root.iter()]


def find(elements, css):
    return [element for _, element in elements if css in element.get("class", "").split()]


def title_of(element):
    return element.find("{http://www.w3.org/2000/svg}title").text


def differences_of(values_by_method):
    rows = [
        {"method": method, "seed": seed, "difference": value}
        for method, values in values_by_method.items()
        for seed, value in enumerate(values)
    ]
    intervals = pd.DataFrame(
        [
            {"method": method, "mean": np.mean(values), "low": min(values), "high": max(values), "answer": "undecided"}
            for method, values in values_by_method.items()
        ]
    ).set_index("method")
    return pd.DataFrame(rows), intervals


def draw(values_by_method, intervals=None, margin=None, unit=PLAIN, labels=None):
    differences, computed = differences_of(values_by_method)
    labels = labels or ["none", *values_by_method]
    found = computed if intervals is None else intervals
    return draw_differences(differences, found, labels, "none", "test_acc", "max", unit, margin)


def test_a_dot_for_each_pair_and_its_value():
    elements = parse(draw({"znorm": [0.01, 0.02, -0.01]}, unit=SHARE))
    dots = find(elements, "soft")
    assert [title_of(dot) for dot in dots] == [*("znorm, seed 0: +1.0", "znorm, seed 1: +2.0", "znorm, seed 2: -1.0")]
    places = [float(dot.get("cx")) for dot in dots]
    assert places[2] < 240 < places[0] < places[1]
    assert places[1] - 240 == pytest.approx(2 * (240 - places[2]), abs=0.2)
    assert not find(elements, "cut")


@pytest.mark.parametrize("outlier", [50.0, -50.0, math.inf, -math.inf])
def test_an_outlier_is_cut_with_a_mark_and_does_not_ruin_the_scale(outlier):
    values = [0.1 * number for number in range(1, 16)]
    usual = [float(dot.get("cx")) for dot in find(parse(draw({"znorm": values})), "soft")]
    differences, intervals = differences_of({"znorm": [*values, outlier]})
    intervals[["low", "mean", "high"]] = [0.1, 0.5, 1.0]
    elements = parse(draw_differences(differences, intervals, ["none", "znorm"], "none", "m", "max", PLAIN, None))
    dots, cuts = find(elements, "soft"), find(elements, "cut")
    assert len(dots) == len(values)
    assert [f"{outlier:+.3g}" in title_of(cut) for cut in cuts] == [True]
    assert max(abs(float(dot.get("cx")) - 240) for dot in dots) > 0.5 * max(abs(place - 240) for place in usual)


def test_an_interval_of_few_pairs_is_cut_at_both_ends():
    differences, intervals = differences_of({"znorm": [0.1, 0.2]})
    intervals[["low", "high"]] = [-math.inf, math.inf]
    elements = parse(draw_differences(differences, intervals, ["none", "znorm"], "none", "m", "min", PLAIN, None))
    assert len(find(elements, "cut")) == 2


def test_a_pair_without_a_metric_has_no_dot():
    differences, intervals = differences_of({"znorm": [0.1, math.nan]})
    assert intervals["mean"].isna().all()
    elements = parse(draw_differences(differences, intervals, ["none", "znorm"], "none", "m", "max", PLAIN, None))
    assert len(find(elements, "soft")) == 1
    assert draw({"znorm": [math.nan]}) is None


def test_the_margin_is_a_zone():
    values = {"znorm": [0.1, 0.2, 0.3]}
    assert not find(parse(draw(values)), "zone")
    (zone,) = find(parse(draw(values, margin=0.1)), "zone")
    assert float(zone.get("x")) < 240 < float(zone.get("x")) + float(zone.get("width"))
    for margin in (1e-9, 1e9):
        parse(draw(values, margin=margin))


def test_better_is_on_the_right_where_more_is_better():
    differences, intervals = differences_of({"znorm": [0.1, 0.2]})
    for mode, right in (("max", "better →"), ("min", "worse →")):
        svg = draw_differences(differences, intervals, ["none", "znorm"], "none", "m", mode, PLAIN, None)
        texts = {element.text: float(element.get("x")) for tag, element in parse(svg) if tag == "text"}
        assert texts[right] > 400


def trials_of(values_by_method, xs, **columns):
    rows = [
        {"method": method, "x": x, "mean": value, "low": value, "high": value, "seeds": 1}
        | {"failed": int(math.isnan(value)), "selected": False, "unsettled": False, "panel": ""}
        for method, values in values_by_method.items()
        for x, value in zip(xs, values, strict=True)
    ]
    return pd.DataFrame(rows).assign(**columns)


def sweep(trials, labels, mode="max", unit=PLAIN):
    return draw_sweep(trials, labels, labels[0], "lr", "val_acc", mode, unit)


def test_the_selected_setting_has_a_ring_and_a_failed_one_a_cross():
    trials = trials_of({"none": [0.5, 0.9, math.nan]}, [0.001, 0.01, 0.1])
    trials.loc[1, ["selected", "seeds"]] = [True, 3]
    elements = parse(sweep(trials, ["none"], unit=SHARE))
    (ring,) = find(elements, "ring")
    assert title_of(ring) == "none, lr=0.01: 90.0, 3 seeds, selected"
    (cross,) = [element for tag, element in elements if tag == "text" and element.text is None and len(element)]
    assert title_of(cross) == "none, lr=0.1: 1 of 1 runs have no metric"


@pytest.mark.parametrize("mode", ["max", "min"])
def test_trials_at_chance_do_not_squeeze_the_others(mode):
    sign = 1 if mode == "max" else -1
    good = [0.90, 0.91, 0.93, 0.92, 0.915, 0.905]
    xs = [10.0**-power for power in range(8)]
    trials = trials_of({"none": [sign * value for value in [0.1, *good, -5.0]]}, xs)
    trials.loc[3, "selected"] = True
    elements = parse(sweep(trials, ["none"], mode))
    assert len(find(elements, "cut")) == 2
    places = [float(mark.get("cy")) for mark in find(elements, "mark") if mark.get("cy") and mark.get("r") == "4"]
    assert max(places) - min(places) > 90  # of 250


def test_a_moderate_range_is_shown_whole():
    elements = parse(sweep(trials_of({"none": [0.5, 0.6, 0.7, 0.8]}, [1, 2, 3, 4]), ["none"]))
    assert not find(elements, "cut")


@pytest.mark.parametrize(
    "xs",
    [[0.1], [0.0, 0.1], [1, 1000000], ["SGD", "Adam"], [True, False], [None, (1, 2), {"a": 1}], [1e-300, 1e300]],
    ids=repr,
)
def test_whatever_was_swept(xs):
    elements = parse(sweep(trials_of({"none": [0.5] * len(xs)}, xs), ["none"]))
    assert len([mark for mark in find(elements, "mark") if mark.get("r") == "4"]) == len(xs)


def curves_of(values_by_method):
    return pd.DataFrame(
        [
            {"method": method, "seed": seed, "epoch": float(at + 1), "step": 10.0 * (at + 1), "value": value}
            for method, seeds in values_by_method.items()
            for seed, values in enumerate(seeds)
            for at, value in enumerate(values)
        ],
        columns=["method", "seed", "epoch", "step", "value"],
    )


def test_curves_have_a_line_and_a_band():
    curves = curves_of({"none": [[0.1, 0.5], [0.3, 0.7]], "znorm": [[0.2, 0.6], [0.2, 0.8]]})
    elements = parse(draw_curves(curves, ["none", "znorm"], "none", "val_acc", "max", SHARE, "step"))
    assert len(find(elements, "band")) == 2
    lines = [line for line in find(elements, "line") if line.tag.endswith("polyline")]
    assert [title_of(line) for line in lines] == ["none: 60 in the end", "znorm: 70 in the end"]


@pytest.mark.parametrize("name", ["curves", "losses"])
def test_odd_curves(name):
    single = curves_of({"none": [[0.5]]})
    parse(draw_curves(single, ["none"], "none", "val_acc", "max", SHARE, "epoch", name))
    constant = curves_of({"none": [[0.5] * 3] * 2})
    parse(draw_curves(constant, ["none"], "none", "val_acc", "max", SHARE, "epoch", name))
    wild = curves_of({"none": [[1e-3, 1e6, 5.0], [1e300, 2.0, 1.0]]})
    parse(draw_curves(wild, ["none"], "none", "loss", "min", PLAIN, "epoch", name))
    lost = curves_of({"none": [[math.nan] * 3]})
    assert draw_curves(lost, ["none"], "none", "loss", "min", PLAIN, "epoch", name) is None
    assert draw_curves(curves_of({}), ["none"], "none", "loss", "min", PLAIN, "epoch", name) is None


def test_names_are_no_markup():
    values = {label: [0.1, 0.2] for label in ODD[1:]}
    for svg in (
        draw(values, labels=ODD),
        sweep(trials_of({label: [0.1, 0.2] for label in ODD}, ["<i>", "&"]), ODD),
        draw_curves(curves_of({label: [[0.1, 0.2]] for label in ODD}), ODD, "none", "<m>&", "max", PLAIN, "epoch"),
    ):
        assert {tag for tag, _ in parse(svg)} <= {
            *("svg", "title", "style", "g", "line", "text", "circle", "polygon", "polyline", "rect", "clipPath")
        }


def test_a_method_has_one_colour_in_all_pictures_and_the_baseline_is_grey():
    labels = ["znorm", "none", *(f"m{number}" for number in range(28))]
    classes = make_classes(labels, "none")
    assert (classes["none"], classes["znorm"], classes["m0"]) == ("m0", "m1", "m2")
    assert len({*classes.values()}) == 30
    assert len({(int(css[1:]) % 10, find_dash(css)) for css in classes.values()}) == 30
    others = {label: [0.1, 0.2] for label in labels if label != "none"}
    groups = [
        {element.get("class") for tag, element in parse(svg) if tag == "g"} - {"legend", None}
        for svg in (
            draw(others, labels=labels),
            draw_sweep(trials_of({**others, "none": [0, 1]}, [1, 2]), labels, "none", "lr", "m", "max", PLAIN),
        )
    ]
    assert groups[0] == {classes[label] for label in others}
    assert groups[1] == {*classes.values()}


def test_long_curves_stay_small():
    rng = np.random.default_rng(0)
    curves = curves_of({f"m{number}": rng.random((8, 2000)).tolist() for number in range(12)})
    svg = draw_curves(curves, [f"m{number}" for number in range(12)], "m0", "val_acc", "max", SHARE, "epoch")
    assert len(svg) < 90_000


def test_ticks_are_round_and_few():
    assert Scale(0, 1, 0, 100).list_ticks() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert Scale(1e-5, 1e-1, 0, 100, is_logarithmic=True).list_ticks() == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2, 1e-1])
    for low, high in ((0.011, 0.012), (1e-30, 1e30), (3, 17)):
        ticks = Scale(low, high, 0, 100, is_logarithmic=True).list_ticks()
        assert 1 <= len(ticks) <= 9
        assert all(low <= tick <= high for tick in ticks)
    assert [format_tick(value) for value in (0, 0.1 + 0.2, 1e-5, -3.0, 1e6)] == ["0", "0.3", "1e-5", "−3", "1e6"]
