"""Each cell of precision x optimizer x mode equals the training by hand, or is refused before its first step.

`make matrix` turns what these tests find into the page of the docs; here they are held against that page.
"""

import csv
import itertools
from pathlib import Path

import lightning
import pytest
import torch

from lightning_znorm._lightning import MisconfigurationError
from tests.helpers import PACKAGES, skip_if_pytorch_is_wrong
from tests.matrix.page import PAGE, TABLE, render
from tests.matrix.trainings import DTYPES, MODES, OPTIMIZERS, train

# norm of the weights' error over norm of their change; with half-precision weights it is the rounding of the weights
BOUNDS = {
    "32-true": 1e-6,
    "bf16-mixed": 1e-6,
    "16-mixed": 1e-6,
    "bf16-true": 5e-2,
    "16-true": 1e-2,
    "64-true": 1e-14,
}


@pytest.fixture(scope="module")
def published():
    with open(TABLE) as file:
        return {(row["mode"], row["precision"], row["optimizer"]): row for row in csv.DictReader(file)}


def list_cells():
    """In one of the packages, as the colors of a checkerboard; in both for the page."""
    for place in itertools.product(enumerate(MODES), enumerate(DTYPES), enumerate(OPTIMIZERS)):
        numbers, cell = zip(*place, strict=True)
        color = sum(numbers) % 2
        name = "-".join(cell)
        if "foreach" not in name or "32-true" in cell:
            yield pytest.param(*cell, [PACKAGES[color]], id=f"{name}-{PACKAGES[color]}")
        yield pytest.param(*cell, PACKAGES, id=name, marks=pytest.mark.long)


@pytest.mark.parametrize(("mode", "precision", "optimizer", "packages"), list(list_cells()))
def test_cell(mode, precision, optimizer, packages, published, record_property):
    if optimizer == "SGD, fused":
        skip_if_pytorch_is_wrong(DTYPES[precision] if precision.endswith("true") else torch.float32)
    results = [train(mode, precision, optimizer, package) for package in packages]
    versions = f"torch {torch.__version__.partition('+')[0]} and Lightning {lightning.__version__}"
    cell = {"mode": mode, "precision": precision, "optimizer": optimizer, "versions": versions}
    for name, value in cell.items():
        record_property(name, value)
    row = published.get((mode, precision, optimizer), {})
    if all(error is None for _, error in results):
        deviation = max(deviation for deviation, _ in results)
        record_property("outcome", "equal")
        record_property("detail", f"{deviation:.1e}")
        assert deviation <= BOUNDS[precision]
        assert row.get("outcome") == "equal", "run `make matrix`"
    else:
        (message,) = {
            ("" if isinstance(error, MisconfigurationError) else "PyTorch: ") + str(error) for _, error in results
        }
        record_property("outcome", "refused")
        record_property("detail", message)
        assert any(word in message for word in (optimizer, "GradScaler")), "the message names the setting"
        assert (row.get("outcome"), row.get("detail")) == ("refused", message), "run `make matrix`"


def test_the_page_shows_the_table(published):
    assert Path(PAGE).read_text() == render(list(published.values()))
    assert len(published) == len(MODES) * len(DTYPES) * len(OPTIMIZERS)
