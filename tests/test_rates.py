"""Which learning rates work: the commands, the ranges, the picture and the tables."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from examples.collection import RATE
from examples.map import rates
from examples.map.data import METHODS
from examples.map.ranges import Range, find_range
from examples.map.rates_page import draw, render
from examples.map.transfer import RATES
from lightning_znorm.compare.command import make_parser
from lightning_znorm.compare.question.arguments import parse_question


def test_commands():
    places = [*rates.list_places(["plain", "residual"], ["sgd", "adam"])]
    assert [str(place) for place in places] == ["plain-20-sgd", "residual-20-sgd", "plain-20-adam", "residual-20-adam"]
    chosen = make_parser("lightning.pytorch")(args=rates.make_flags(places[3], Path("out")), run=False).config.compare
    draft = parse_question(chosen.methods, chosen.sweep, chosen.monitor, confirm=chosen.confirm, width=chosen.width)
    assert [method.label for method in draft.methods] == METHODS
    assert draft.sweep[RATE] == RATES
    assert (chosen.confirm, chosen.width, chosen.out) == (8, None, "out/residual-20-adam")


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        ([0.1, 0.2, 0.6, 0.9, 0.1], Range(1.0, 0.1, 1.0, False, False)),
        ([0.1, 0.6, 0.2, 0.9, None], Range(1.0, 1.0, 1.0, False, False)),  # the gap ends the range
        ([0.5, 0.6, 0.7, 0.9, 0.6], Range(1.0, 1e-3, 10.0, True, True)),
        ([0.1, 0.1, 0.1, 0.1001, 0.1], Range(1.0, 1.0, 1.0, False, False)),
    ],
)
def test_ranges(accuracies, expected):
    tried = pd.DataFrame({"rate": [1e-3, 1e-2, 0.1, 1.0, 10.0], "validation": accuracies, "selected": [0, 0, 0, 1, 0]})
    assert find_range(tried.sample(frac=1, random_state=0)) == expected


def test_text_of_a_range():
    assert str(Range(1e-4, 3e-5, 1e-3, False, False)) == "3e-05 to 0.001"
    assert str(Range(1e-4, 3e-5, 1e-3, True, True)) == "≤ 3e-05 to ≥ 0.001"


def test_picture_and_tables():
    best = dict(zip(METHODS, (-2, -1, -2, -3.5, -3.5, -3.5), strict=True))
    trials = pd.DataFrame(
        {"network": network, "depth": 20, "optimizer": optimizer, "method": method, "rate": rate}
        | {"validation": max(0.1, 0.95 - 0.1 * (np.log10(rate) - best[method]) ** 2)}
        | {"selected": int(rate == min(RATES, key=lambda each: abs(np.log10(each) - best[method])))}
        for network in ("plain", "residual")
        for optimizer in ("sgd", "adam")
        for method in METHODS
        for rate in RATES
    )
    head, _, plain, residual = render(trials, "sgd").splitlines()
    assert head.split(" | ")[5] == "`znorm`"
    assert plain.split(" | ")[1] == "0.01 (0.0001 to 1)"
    assert residual.startswith("| residual | ")
    assert set(render(trials.assign(validation=0.29), "sgd").splitlines()[2].split(" | ")[1:]) == {"–", "– |"}
    draw(trials, Path("rates.png"))
    assert Path("rates.png").stat().st_size > 20_000
