"""The figures of docs/results.md, written again from the runs of the map."""

import pandas as pd
import pytest
from scipy import stats

from examples.map.analysis import analyze
from examples.map.data import METHODS, PLACE, read_confirmation
from tests.prose import find_prose
from tests.published import DOCS, find_sections

SECTIONS = {title: find_prose(text) for title, text in find_sections((DOCS / "results.md").read_text()).items()}
CONFIRMATION = read_confirmation(DOCS / "data" / "map")
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


def find_answer(network, method="znorm"):
    table = analyze(CONFIRMATION, method).set_index(PLACE)
    return table.loc[(network, 20, "sgd"), "answer"]


def write_map():
    default, plain, residual = Row("default"), Row("plain"), Row("residual")
    layer, batch, both = Row("layernorm"), Row("batchnorm"), Row("residual-layernorm")
    without_weights = both.means.drop(WEIGHTS)
    assert default.means[["none", "clip", "gc"]].max() < 0.12
    assert find_answer("default") == "better"
    assert find_answer("residual") == find_answer("layernorm") == "worse"
    assert find_answer("residual-layernorm") == "equivalent"
    assert find_answer("plain") == find_answer("batchnorm") == "undecided"
    return [
        f"ZNorm reaches {default.show('znorm')}%, `scale` {default.show('scale')}%",
        f"a lead of {default.compare('znorm', 'scale')}",
        f"no transform has {residual.show('none')}%, ZNorm {residual.show('znorm')}%,"
        f" `scale` {residual.show('scale')}%",
        f"clipping {residual.show('clip')}%: ZNorm is behind it by {residual.compare('clip', 'znorm')}",
        f"no transform has {plain.show('none')}%, ZNorm {plain.show('znorm')}%, a difference of"
        f" {plain.compare('znorm', 'none')}",
        f"clipping ({plain.show('clip')}%) and gradient centralization ({plain.show('gc')}%)",
        f"no transform has {layer.show('none')}%, ZNorm {layer.show('znorm')}%, and gradient centralization"
        f" {layer.show('gc')}%",
        f"behind by {layer.compare('gc', 'znorm')}",
        f"from {batch.show('gc')}% (`gc`) to {batch.show('scale')}% (`scale`), ZNorm {batch.show('znorm')}%",
        f"all methods have {100 * without_weights.min():.1f}% to {100 * without_weights.max():.1f}%",
    ]


def write_weights():
    default, layer = Row("default"), Row("layernorm")
    others = [Row(network) for network in ("plain", "batchnorm", "residual", "residual-layernorm")]
    largest = max(abs(row.means[WEIGHTS] - row.means["znorm"]) for row in others)
    assert default.means["znorm"] > default.means[WEIGHTS]
    assert layer.means["znorm"] < layer.means[WEIGHTS]
    return [
        f"costs {default.compare('znorm', WEIGHTS)} where gradients vanish",
        f"gains {layer.compare(WEIGHTS, 'znorm')} behind LayerNorm",
        f"at most {100 * largest:.1f} in the other four",
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


@pytest.mark.parametrize(
    ("title", "write"),
    [("The map", write_map), ("Why", write_why), ("All parameters or the weights alone?", write_weights)],
)
def test_figures_are_those_of_the_runs(title, write):
    assert [sentence for sentence in write() if sentence not in SECTIONS[title]] == []


def test_figures_of_the_readme():
    prose = find_prose((DOCS.parent / "README.md").read_text())
    residual, default, layer = Row("residual"), Row("default"), Row("layernorm")
    for sentence in (
        f"SGD has {residual.show('none')}% without and {residual.show('znorm')}% with ZNorm",
        f"clipping, with {residual.show('clip')}%",
        f"ZNorm reaches {default.show('znorm')}% where",
        f"{layer.compare('gc', 'znorm').partition(' ')[0]} points worse than gradient centralization",
    ):
        assert sentence in prose
    assert find_answer("residual-layernorm") == "equivalent"
