"""Sharded gradients in real processes under gloo; the cases are in the modules that each launch names."""

import csv
import itertools

import pytest

from tests.matrix.page import render
from tests.sharded.page import INTRODUCTION, PAGE, TABLE, find_rows
from tests.sharded.ranks import launch

# norm of the weights' error over norm of their change
BOUNDS = {"32-true": 2e-6, "bf16-mixed": 0.1, "16-mixed": 0.01, "bf16-true": 0.2, "16-true": 0.05}


LAUNCHES = list(itertools.product(["arithmetic", "loops", "trainers"], [1, 2, 3, 4]))
SHORT = [("arithmetic", 2), ("arithmetic", 3), ("arithmetic", 4), ("loops", 2), ("loops", 4)]
SHORT += [("trainers", 2), ("trainers", 3), ("trainers", 4)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "count"),
    [pytest.param(*pair, marks=[] if pair in SHORT else pytest.mark.long) for pair in LAUNCHES],
)
def test_cases(module, count):
    failures, _ = launch(f"tests.sharded.{module}", count)
    assert not failures, "\n".join(failures)


@pytest.mark.slow
def test_a_checkpoint_is_resumed_by_other_numbers_of_ranks():
    for count in (2, 3, 1):
        failures, _ = launch("tests.sharded.resumption", count)
        assert not failures, "\n".join(failures)


@pytest.fixture(scope="module")
def published():
    with open(TABLE) as file:
        return list(csv.DictReader(file))


def test_the_page_shows_the_table(published):
    assert PAGE.read_text() == render(published, INTRODUCTION)


def test_every_cell_is_equal_or_refused(published):
    for row in published:
        if row["outcome"] == "equal":
            assert float(row["detail"]) <= BOUNDS[row["precision"]], row
        else:
            assert row["outcome"] == "refused", row
            assert any(word in row["detail"] for word in (row["optimizer"], "attach", "PyTorch: ", "FSDP")), row


def is_refused_by_pytorch(row):
    return row["outcome"] == "refused" and row["detail"].startswith("PyTorch: ") and "aten." in row["detail"]


@pytest.mark.long
def test_the_cells_still_hold(published):
    """What PyTorch itself refuses differs between its versions."""
    rows, failures = find_rows()
    assert not failures, "\n".join(failures)
    for found, row in zip(rows, published, strict=True):
        cell = {key: found[key] for key in ("mode", "precision", "optimizer")}
        assert cell == {key: row[key] for key in cell}, "run `make matrix`"
        if found["outcome"] == "equal":
            assert float(found["detail"]) <= BOUNDS[found["precision"]], found
        if is_refused_by_pytorch(found) or is_refused_by_pytorch(row):
            assert found["outcome"] == row["outcome"] or found["versions"] != row["versions"], found
        elif row["outcome"] == "refused":
            assert found["detail"] == row["detail"], "run `make matrix`"
        else:
            assert found["outcome"] == "equal", found
