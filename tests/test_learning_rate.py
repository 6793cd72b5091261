"""The tables and figures of docs/learning_rate.md, and those of other pages that repeat them, from the trials."""

import pytest

from examples.map.rates_page import FOLDER, find_ranges, read, render
from tests.prose import WORDS, find_prose
from tests.published import DOCS, ROOT, find_sections, read_rows

PAGE = (DOCS / "learning_rate.md").read_text()
README = (ROOT / "README.md").read_text()
TRIALS = read(ROOT / FOLDER)
SHOWN = {"none": "without ZNorm", "znorm": "with ZNorm"}


def find_best(optimizer, method):
    """Return the best rate of each network in which a method learns."""
    ranges = find_ranges(TRIALS, optimizer)
    return {network: found[method].best for network, found in ranges.items() if found[method]}


def show(rates):
    return f"{min(rates):g} to {max(rates):g}"


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_tables(optimizer):
    assert render(TRIALS, optimizer) in PAGE, "run `python -m examples.map.rates_page` and paste its tables"


@pytest.mark.parametrize("page", [PAGE, README], ids=["page", "README"])
def test_one_rate_for_both(page):
    trials = TRIALS[(TRIALS["network"] == "batchnorm") & (TRIALS["optimizer"] == "sgd")]
    (_, *rates), *rows = read_rows(page.replace("\n  |", "\n|"), "| SGD's learning rate |")
    accuracy = 100 * trials.pivot(index="rate", columns="method", values="validation")
    for (name, *cells), (method, shown) in zip(rows, SHOWN.items(), strict=True):
        assert shown in name
        best = f"{accuracy[method].max():.1f}"
        values = [f"{accuracy[method][float(rate)]:.1f}" for rate in rates]
        assert cells == [f"**{value}**" if value == best else value for value in values]
        assert best in values


def test_rules():
    sgd, adam = ({method: find_best(optimizer, method) for method in SHOWN} for optimizer in ("sgd", "adam"))
    exploding, trains = sgd["none"].pop("residual"), sgd["none"]
    assert exploding == sgd["znorm"]["residual"]
    assert trains.keys() == {"plain", "layernorm", "batchnorm", "residual-layernorm"}
    ratios = [round(rate / sgd["znorm"][network]) for network, rate in trains.items()]
    factors = [
        max(rate / adam["znorm"][network], adam["znorm"][network] / rate) for network, rate in adam["none"].items()
    ]
    ours, below, differ = show(sgd["znorm"].values()), f"{min(ratios)} to {max(ratios)} times", f"{max(factors):.0f}"
    count, page, readme = WORDS[len(sgd["znorm"])], find_prose(PAGE), find_prose(README)
    for sentence in (
        f"begin with a rate {below} smaller than without ZNorm",
        f"In the {count} networks below, ZNorm's best rate is {ours}, and that of no transform"
        f" {show(trains.values())} where it trains",
        f"Where gradients explode, both are {exploding:g}, and plain SGD hardly trains",
        f"The best ones differ by a factor of at most {differ}",
    ):
        assert sentence in page
    for sentence in (
        f"In {count} networks of 20 layers, ZNorm's best rate is {ours}, {below} below that of plain SGD",
        f"with Adam, the two differ by a factor of at most {differ}.",
    ):
        assert sentence in readme
    section = find_prose(find_sections((DOCS / "results.md").read_text())["Does the best learning rate transfer?"])
    learned = [*trains.values(), exploding]
    assert f"its best rate under SGD is {ours} in all {count} of the map" in section
    assert f"that of no transform {show(learned)} in the {WORDS[len(learned)]} in which it learns" in section


def test_plain_sgd_hardly_trains_where_gradients_explode():
    trials = TRIALS[(TRIALS["optimizer"] == "sgd") & (TRIALS["method"] == "none")]
    best = trials.groupby("network")["validation"].max()
    assert 0.2 < best["residual"] < 0.5 < best.drop(["residual", "default"]).min()
    assert best["default"] < 0.12
