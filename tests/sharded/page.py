"""Train every cell of the matrix of shardings, and write `docs/data/sharded_matrix.csv` and its page: `make matrix`."""

import os
import sys
import tempfile

from tests.matrix.page import ROOT, render, write_table
from tests.sharded.ranks import launch

TABLE = ROOT / "docs" / "data" / "sharded_matrix.csv"
PAGE = ROOT / "docs" / "sharded_matrix.md"
COUNTS = (2, 4)

INTRODUCTION = """\
# Shardings, precision, optimizer

Each cell is a training of four optimizer steps with `ZNorm` by two or four processes on a CPU (gloo), in Trainers of
`lightning.pytorch` or `pytorch_lightning`, or with `attach`. A number bounds the deviation from the same training by
hand: one process, whole batches, float64, the z-score by NumPy. It is the norm of the difference of all weights,
divided by the norm of their change by training; in half precision, it is the rounding of activations and weights in
that precision. All other combinations are refused, "PyTorch:" marking what PyTorch itself refuses in the first step,
with and without ZNorm.

The network has weights that no number of ranks divides, biases with an empty shard, and a bias of one element.
`16-mixed` uses a real GradScaler. This page is generated from what the tests find with {versions}
(`make matrix`), and the tests check that it still holds. See [models that outgrow one device](sharding.md).
"""


def find_rows():
    """Return a row per cell, and what failed."""
    rows, failures = [], []
    for count in COUNTS:
        failed, outcomes = launch("tests.sharded.matrix", count)
        failures += failed
        rows += [] if failed else outcomes[0]["cells"][1]
    return rows, failures


def main():
    """Write the table and the page."""
    os.environ.setdefault("MASTER_PORT", "29871")
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        rows, failures = find_rows()
    if failures:
        sys.exit("\n".join(failures))
    write_table(rows, TABLE)
    PAGE.write_text(render(rows, INTRODUCTION))


if __name__ == "__main__":
    main()
