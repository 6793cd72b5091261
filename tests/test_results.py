"""The figures of docs/results.md, written again from the runs of the map."""

from functools import cache

import pandas as pd
import pytest
from scipy import stats

from examples import collection
from examples.map.analysis import OTHERS, analyze
from examples.map.data import METHODS, PLACE, TEST_IMAGES, read_confirmation
from examples.map.run import NETWORKS
from examples.map.transfer import BASE, Size
from examples.map.transfer_page import render, tabulate
from tests.prose import find_prose
from tests.published import DOCS, find_sections

SECTIONS = {title: find_prose(text) for title, text in find_sections((DOCS / "results.md").read_text()).items()}
CONFIRMATION = read_confirmation(DOCS / "data" / "map")
SIZES = DOCS / "data" / "transfer"
TRANSFER = collection.read_confirmation(SIZES, TEST_IMAGES), collection.read_trials(SIZES)
WEIGHTS = "znorm(min_ndim=2)"


class Row:
    """The runs of a place."""

    def __init__(self, network, depth=20, optimizer="sgd"):
        is_here = (CONFIRMATION[PLACE] == [network, depth, optimizer]).all(axis=1)
        self.runs = CONFIRMATION[is_here]
        self.means = self.runs[METHODS].mean()

    def show(self, method):
        return f"{100 * self.means[method]:.1f}"

    def compare(self, method, other):
        """Return the difference of two methods in points, with its interval."""
        (row,) = analyze(self.runs, method, [other]).to_dict("records")
        low, high = (f"{100 * row[end]:.1f}".replace("-", "−") for end in ("low", "high"))
        assert row["lead"] > 0
        return f"{100 * row['lead']:.1f} points ({low} to {high})"


@cache
def find_answers(method, others):
    return analyze(CONFIRMATION, method, others).set_index(PLACE)["answer"]


def find_answer(network, optimizer="sgd", method="znorm", others=OTHERS, depth=20):
    return find_answers(method, tuple(others))[network, depth, optimizer]


def show_range(means):
    return f"{100 * means.min():.1f}% to {100 * means.max():.1f}%"


def write_map():
    default, plain, residual = Row("default"), Row("plain"), Row("residual")
    layer, batch, both = Row("layernorm"), Row("batchnorm"), Row("residual-layernorm")
    adam = {network: Row(network, optimizer="adam") for network in NETWORKS}
    tiny = Row("default", optimizer="adam-eps")
    answers = {network: (find_answer(network), find_answer(network, "adam")) for network in NETWORKS}
    assert answers == {
        "default": ("better", "undecided"),
        "plain": ("undecided", "undecided"),
        "layernorm": ("worse", "worse"),
        "batchnorm": ("undecided", "undecided"),
        "residual": ("worse", "worse"),
        "residual-layernorm": ("equivalent", "undecided"),
    }
    assert default.means[["none", "clip", "gc"]].max() < 0.12
    assert find_answer("default", "adam", others=["none"]) == "better"
    assert find_answer("default", "adam-eps", others=["none"]) == "undecided"
    assert find_answer("default", "adam-eps", others=["gc"]) == "worse"
    assert find_answer("batchnorm", "adam", others=["none"]) == "better"
    exploding = [residual, adam["residual"]]
    none, znorm, clip = ([f"{row.show(method)}%" for row in exploding] for method in ("none", "znorm", "clip"))
    behind = [row.compare("clip", "znorm") for row in exploding]
    return [
        f"ZNorm reaches {default.show('znorm')}%, `scale` {default.show('scale')}%",
        f"a lead of {default.compare('znorm', 'scale')}",
        f"With Adam, no transform has {adam['default'].show('none')}%, ZNorm {adam['default'].show('znorm')}%.",
        f"with 1e-30 instead of 1e-8, no transform has {tiny.show('none')}%, ZNorm {tiny.show('znorm')}%, and gradient"
        f" centralization {tiny.show('gc')}%",
        f"No transform has {none[0]} with SGD and {none[1]} with Adam, ZNorm {' and '.join(znorm)}, clipping"
        f" {' and '.join(clip)}: ZNorm is behind it by {' and '.join(behind)}",
        f"With SGD, no transform has {plain.show('none')}%, ZNorm {plain.show('znorm')}%, a difference of"
        f" {plain.compare('znorm', 'none')}",
        f"clipping ({plain.show('clip')}%) and gradient centralization ({plain.show('gc')}%)",
        f"With Adam, all have {show_range(adam['plain'].means.drop(WEIGHTS))}",
        f"no transform has {layer.show('none')}%, ZNorm {layer.show('znorm')}%, and gradient centralization"
        f" {layer.show('gc')}%",
        f"behind by {layer.compare('gc', 'znorm')}",
        f"With Adam, ZNorm has {adam['layernorm'].show('znorm')}%, behind clipping by"
        f" {adam['layernorm'].compare('clip', 'znorm')}",
        f"from {batch.show('gc')}% (`gc`) to {batch.show('scale')}% (`scale`), ZNorm {batch.show('znorm')}%",
        f"With Adam, no transform has {adam['batchnorm'].show('none')}% and ZNorm {adam['batchnorm'].show('znorm')}%, a"
        f" difference of {adam['batchnorm'].compare('znorm', 'none')}, and clipping {adam['batchnorm'].show('clip')}%",
        f"all methods have {show_range(both.means.drop(WEIGHTS))}",
        f"With Adam, they have {show_range(adam['residual-layernorm'].means.drop(WEIGHTS))}",
    ]


def write_shallow():
    adam = [Row(network, 5, optimizer) for network in NETWORKS for optimizer in ("adam", "adam-eps")]
    means = pd.concat([row.means for row in adam])
    answers = {network: find_answer(network, depth=5) for network in NETWORKS}
    assert [network for network, answer in answers.items() if answer == "worse"] == ["default", "plain"]
    for optimizer in ("adam", "adam-eps"):
        assert {find_answer(network, optimizer, depth=5) for network in NETWORKS} == {"undecided", "equivalent"}
    default, plain = Row("default", 5), Row("plain", 5)
    others = [Row(network, 5).means for network in NETWORKS if network != "default"]
    assert max((row - row["none"]).abs().max() for row in others) < 0.012
    return [
        f"all methods have {show_range(means)} in all six networks",
        f"no transform has {default.show('none')}%, ZNorm {default.show('znorm')}%, and clipping"
        f" {default.show('clip')}%, from which ZNorm is behind by {default.compare('clip', 'znorm')}",
        f"it is behind no transform by {plain.compare('none', 'znorm')}",
    ]


def write_deep():
    rows = {network: Row(network, 50) for network in NETWORKS}
    others = ["plain", "layernorm", "batchnorm", "residual"]
    answers = {network: find_answer(network, depth=50) for network in NETWORKS}
    assert [answers[network] for network in others] == ["worse", "undecided", "undecided", "worse"]
    assert {find_answer(network, others=["none"], depth=50) for network in others} == {"better"}
    assert answers["default"] == "nothing"
    assert rows["residual"].means["none"] < 0.12
    best = rows["residual-layernorm"].means.drop(WEIGHTS)
    assert answers["residual-layernorm"] == "undecided"
    assert best.idxmin() == "znorm"
    shown = {network: {method: f"{row.show(method)}%" for method in METHODS} for network, row in rows.items()}
    layer, batch = (
        [shown[name][method] for method in ("none", "znorm", "scale")] for name in ("layernorm", "batchnorm")
    )
    return [
        f"still learns well: all methods have {show_range(best)}",
        f"ZNorm has {shown['residual']['znorm']} and clipping {shown['residual']['clip']}, ahead by"
        f" {rows['residual'].compare('clip', 'znorm')}",
        f"no transform has {shown['plain']['none']}, ZNorm {shown['plain']['znorm']}, and clipping"
        f" {shown['plain']['clip']}, ahead by {rows['plain'].compare('clip', 'znorm')}",
        f"no transform has {batch[0]}, ZNorm {batch[1]} and `scale` {batch[2]}; with LayerNorm and no skips,"
        f" {layer[0]}, {layer[1]} and {layer[2]}",
    ]


def write_weights():
    rows = [[Row(network, optimizer=optimizer) for optimizer in ("sgd", "adam")] for network in NETWORKS]
    default, plain, layer, *others = rows
    largest = max(abs(row.means[WEIGHTS] - row.means["znorm"]) for pair in (plain, *others) for row in pair)
    for optimizer in ("sgd", "adam"):
        assert find_answer("default", optimizer, WEIGHTS, ["znorm"]) == "worse"
        for network in ("plain", "batchnorm", "residual", "residual-layernorm"):
            assert find_answer(network, optimizer, WEIGHTS, ["znorm"]) in ("undecided", "equivalent")
    assert find_answer("layernorm", "adam", WEIGHTS, ["znorm"]) == "better"
    assert abs(layer[1].means[WEIGHTS] - layer[1].means["none"]) < 0.01
    costs, gains = (
        [row.compare(*pair) for row in rows]
        for rows, pair in ((default, ("znorm", WEIGHTS)), (layer, (WEIGHTS, "znorm")))
    )
    return [
        f"it costs {costs[0]} with SGD, and {costs[1]} with Adam",
        f"it gains {gains[0]} with SGD, and {gains[1]} with Adam",
        f"in the other four networks, the difference is at most {100 * largest:.1f} points",
    ]


def write_why():
    table = pd.read_csv(DOCS / "data" / "map" / "gradients.csv")
    hidden = {place: own.iloc[:-1] for place, own in table.groupby(["network", "depth"])}
    spread = {place: own["rms"].max() / own["rms"].min() for place, own in hidden.items()}
    default, residual, batch = hidden["default", 20], [hidden["residual", depth] for depth in (20, 50)], "batchnorm"
    assert all(spread["residual", depth] < 1.5 for depth in (20, 50))
    return [
        f"the last layer is {default['rms'].iloc[-1] / default['rms'].iloc[0] / 1e6:.1f} million times",
        f"in {(default['below_eps'] > 0.9).sum()} of the 20 layers more than nine tenths",
        f"of size {stats.gmean(residual[0]['rms']):.0f} with 20 layers and"
        f" {round(stats.gmean(residual[1]['rms']), -4):,.0f} with 50",
        f"grows {spread[batch, 20]:.0f} times with 20 layers, {round(spread[batch, 50], -3):,.0f} times with 50",
        f"in {hidden[batch, 20]['noise'].sum():.0f} of 20 layers",
        f"is {spread['layernorm', 20]:.1f} and {spread['residual-layernorm', 20]:.1f} times the smallest",
    ]


def write_transfer():
    table = tabulate(*TRANSFER)
    assert table["size"].nunique() == 11
    own = {method: rows.sort_values("loss") for method, rows in table.groupby("method")}
    base = {method: rows[rows["size"] == Size("residual-layernorm", **BASE)].iloc[0] for method, rows in own.items()}
    znorm, worst = own["znorm"], own["znorm"].iloc[-1]
    losses = {method: f"{100 * rows['loss'].max():.1f}" for method, rows in own.items()}
    return [
        f"ZNorm at {base['znorm']['range'].best:g}, its best rate with 8 layers of 64, loses at most"
        f" {losses['znorm']} points ({100 * worst['loss_low']:.1f} to {100 * worst['loss_high']:.1f})",
        f"at most {100 * znorm['loss'].iloc[-2]:.1f} in the nine others",
        f"no transform at {base['none']['range'].best:g} loses at most {losses['none']}.",
        f"`scale` at {base['scale']['range'].best:g} loses up to {losses['scale']}:",
        f"With ZNorm, rates from {base['znorm']['range'].low:g} to {base['znorm']['range'].high:g} work in the base",
        f"with no transform those from {base['none']['range'].low:g} to {base['none']['range'].high:g}",
    ]


def test_page_of_the_transfer():
    assert (DOCS / "transfer.md").read_text() == render(*TRANSFER), "run `python -m examples.map.transfer_page`"


@pytest.mark.parametrize(
    ("title", "write"),
    [
        ("The map", write_map),
        ("The map", write_shallow),
        ("The map", write_deep),
        ("Why", write_why),
        ("All parameters or the weights alone?", write_weights),
        ("Does the best learning rate transfer?", write_transfer),
    ],
)
def test_figures_are_those_of_the_runs(title, write):
    assert [sentence for sentence in write() if sentence not in SECTIONS[title]] == []


def test_places_that_have_been_run():
    count = len(CONFIRMATION[PLACE].drop_duplicates())
    assert f"Of the 54 places of the map, {count} have been run" in find_prose((DOCS / "results.md").read_text())


def test_figures_of_the_readme():
    prose = find_prose((DOCS.parent / "README.md").read_text())
    residual, default, layer = Row("residual"), Row("default"), Row("layernorm")
    adam = {network: Row(network, optimizer="adam") for network in ("default", "residual")}
    for sentence in (
        f"SGD has {residual.show('none')}% without and {residual.show('znorm')}% with ZNorm, and Adam"
        f" {adam['residual'].show('none')}% and {adam['residual'].show('znorm')}%; clipping, with"
        f" {residual.show('clip')}% and {adam['residual'].show('clip')}%",
        f"ZNorm reaches {default.show('znorm')}% where",
        f"with Adam {adam['default'].show('znorm')}% instead of {adam['default'].show('none')}%",
        f"{layer.compare('gc', 'znorm').partition(' ')[0]} points worse than gradient centralization",
    ):
        assert sentence in prose
    assert find_answer("residual-layernorm") == "equivalent"
