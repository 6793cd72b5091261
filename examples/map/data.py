"""The published runs of the map, by network, depth and optimizer."""

from pathlib import Path

import pandas as pd

from examples import collection
from examples.map.run import PUBLISHED, STARTS, parse_place

METHODS = list(STARTS)
PLACE = ["network", "depth", "optimizer"]
FOLDER = PUBLISHED
TEST_IMAGES = 300  # of which `confirmation.csv` has the number that is right


def read_confirmation(folder: Path = FOLDER) -> pd.DataFrame:
    """Return the test accuracy of each method, a row per place and seed."""
    return add_place(collection.read_confirmation(folder, TEST_IMAGES))


def read_trials(folder: Path = FOLDER) -> pd.DataFrame:
    """Return what was tried: a row per place, method and rate, with the mean of the validation accuracy."""
    return add_place(collection.read_trials(folder))


def add_place(table: pd.DataFrame) -> pd.DataFrame:
    """Replace the name of the comparison by network, depth and optimizer."""
    places = pd.DataFrame([vars(parse_place(name)) for name in table["comparison"]], table.index)
    return places.join(table.drop(columns="comparison"))
