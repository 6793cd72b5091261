"""The paper's real data sets, where they are there."""

import os
from pathlib import Path

import pytest

DATA = Path(os.environ.get("ZNORM_DATA", Path(__file__).parents[1] / "data")).expanduser().absolute()


def find_data_set(name):
    """Return the folder of a data set; skip the test if there is none."""
    if not (DATA / name).is_dir():
        pytest.skip(
            f"needs the data sets: there is no {DATA / name}. Set ZNORM_DATA to the folder that `make paper-small`"
            " takes as DATA, see docs/data.md."
        )
    return DATA / name
