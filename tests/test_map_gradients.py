"""The gradients of the networks of the map, which say why."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from examples.map.gradients import draw, measure
from examples.map.run import DEPTHS, NETWORKS, OPTIMIZERS, Place, make_flags
from lightning_znorm.compare.command import make_parser
from lightning_znorm.compare.configuration import clean_configuration

PUBLISHED = pd.read_csv(Path(__file__).parents[1] / "docs" / "data" / "map" / "gradients.csv")


def find(network, depth):
    """The hidden layers of a network."""
    table = PUBLISHED[(PUBLISHED["network"] == network) & (PUBLISHED["depth"] == depth)]
    return table.iloc[:-1]


@pytest.mark.parametrize("network", NETWORKS)
def test_networks_are_those_of_the_map(network):
    flags = make_flags(Place(network, 20, next(iter(OPTIMIZERS))), Path("out"))
    configuration = clean_configuration(make_parser("lightning.pytorch")(args=flags, run=False))
    model = configuration["model"]["init_args"]
    defaults = {"init": "he", "norm": None, "has_skips": False}
    assert {name: model[name] for name in defaults} == defaults | NETWORKS[network]


@pytest.mark.parametrize("network", NETWORKS)
def test_measure(network):
    """Random images of unit variance give sizes like those that are published, to a factor."""
    torch.manual_seed(0)
    table = measure(network, 20, torch.randn(64, 1, 8, 8), torch.randint(10, (64,)), seed=0)
    assert table["layer"].tolist() == [*range(1, 22)]
    published = find(network, 20)
    ratios = np.log10(table["rms"].to_numpy()[1:-1]) - np.log10(published["rms"].to_numpy()[1:])
    assert np.abs(ratios).max() < 1.2
    assert table["noise"].sum() == (20 if network == "batchnorm" else 0)
    assert table["below_eps"].between(0, 1).all()


def test_published_table_is_whole():
    sizes = PUBLISHED.groupby(["network", "depth"]).size()
    assert sizes.to_dict() == {(network, depth): depth + 1 for network in NETWORKS for depth in DEPTHS}


def test_picture():
    draw(PUBLISHED, Path("gradients.png"))
    assert Path("gradients.png").stat().st_size > 20_000
