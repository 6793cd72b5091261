"""Turn the results of the matrix tests into `docs/data/matrix.csv` and `docs/matrix.md`: `make matrix`."""

import csv
import math
import sys
from decimal import Decimal
from pathlib import Path
from xml.etree import ElementTree

from tests.matrix.trainings import DTYPES, MODES, OPTIMIZERS

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs" / "data" / "matrix.csv"
PAGE = ROOT / "docs" / "matrix.md"
FIELDS = ("mode", "precision", "optimizer", "outcome", "detail", "versions")

INTRODUCTION = """\
# Precision, optimizer, mode

Each cell is a training of three optimizer steps with `ZNorm` on a CPU, in Trainers of both `lightning.pytorch` and
`pytorch_lightning`, or with `attach`. A number bounds the deviation from the same training by hand (plain PyTorch, the
z-score in 80-bit floating point by NumPy, the optimizer's unfused implementation): the norm of the difference of the
weights, divided by the norm of the change by training. With half-precision weights (`bf16-true`, `16-true`) it is the
rounding of the weights. All other combinations are refused before the first step.

`16-mixed` uses a real GradScaler with its scale of 65536. (The fused SGD of PyTorch 2.11 is wrong for half-precision
weights on a CPU, with and without ZNorm.) This page is generated from the results of the tests with {versions} (`make
matrix`), and the tests check that it still holds.
"""


def read_results(path):
    """Return one row per cell from pytest's JUnit file."""
    rows = []
    for case in ElementTree.parse(path).iter("testcase"):
        found = {entry.get("name"): entry.get("value") for entry in case.iter("property")}
        if "outcome" in found:
            rows.append({field: found[field] for field in FIELDS})
    return rows


def render(rows, introduction=INTRODUCTION):
    """Return the page: a table per mode, optimizers down, precisions across, refusals as notes."""
    cells = {(row["mode"], row["optimizer"], row["precision"]): row for row in rows}
    modes, optimizers, precisions = ([*dict.fromkeys(key[axis] for key in cells)] for axis in range(3))
    notes = {}
    page = [introduction.format(versions=rows[0]["versions"])]
    for mode in modes:
        page += [f"## {mode[0].upper()}{mode[1:]}", ""]
        page += [f"| optimizer | {' | '.join(f'`{precision}`' for precision in precisions)} |"]
        page += ["|---" * (len(precisions) + 1) + "|"]
        for optimizer in optimizers:
            shown = []
            for precision in precisions:
                row = cells[mode, optimizer, precision]
                if row["outcome"] == "equal":
                    shown.append(rounded_up(row["detail"]))
                else:
                    shown.append(f"refused ({notes.setdefault(row['detail'], len(notes) + 1)})")
            page.append(f"| {optimizer} | {' | '.join(shown)} |")
        page.append("")
    page += ["## Refusals", ""]
    page += [f"{number}. {message}" for message, number in notes.items()]
    return "\n".join(page) + "\n"


def rounded_up(deviation):
    """Return a bound of one digit."""
    digit, _, exponent = f"{Decimal(deviation):.1e}".partition("e")
    bound = math.ceil(float(digit))
    return "0" if bound == 0 else f"{Decimal(bound).scaleb(int(exponent)):.0e}".replace("+0", "0")


def main():
    """Write the table and the page from the JUnit file named on the command line."""
    rows = read_results(sys.argv[1])
    rows.sort(
        key=lambda row: [
            list(values).index(row[field]) for field, values in zip(FIELDS, (MODES, DTYPES, OPTIMIZERS), strict=False)
        ]
    )
    write_table(rows, TABLE)
    PAGE.write_text(render(rows))


def write_table(rows, path):
    """Write the rows as CSV."""
    path.parent.mkdir(exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
