"""The tables of docs/results.md, computed again from the runs that are published beside them."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "results.md").read_text()
RATE = "model.init_args.lr"
METRICS = {"accuracy": "test_acc", "Dice": "test_dice", "IoU": "test_iou", "AUROC": "test_auroc", "F1": "test_f1"}


def read_tables():
    """Yield the runs and the table of each section about a comparison."""
    for section in re.split(r"^## ", PAGE, flags=re.MULTILINE):
        paths = re.findall(r"\[Every run\]\((\S+)\)", section)
        if paths:
            yield pytest.param(DOCS / paths[0], read_rows(section, "| method "), id=section.splitlines()[0])


def read_rows(text, start):
    lines = text[text.index(start) :].split("\n\n")[0].splitlines()
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if not line.startswith(("|--", "| --"))
    ]


def interval(values, form):
    reach = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{values.mean() - reach:{form}} to {values.mean() + reach:{form}}".replace("-", "−")


def correct_after_holm(values):
    corrected, largest = {}, 0.0
    for number, method in enumerate(sorted(values, key=values.get)):
        largest = max(largest, min(1.0, values[method] * (len(values) - number)))
        corrected[method] = largest
    return corrected


def select(runs):
    """Return the runs of each method at the rate with the highest mean on the validation split."""
    mean = runs.groupby(["method", RATE]).validation.mean().unstack()
    return {
        method: runs[(runs.method == method) & (runs[RATE] == rate)].sort_values("seed")
        for method, rate in mean.idxmax(axis=1).items()
    }


TABLES = list(read_tables())


def test_all_comparisons_are_found():
    assert len(TABLES) == len(list((DOCS / "data" / "paper").glob("[!d]*-small.csv")))


@pytest.mark.parametrize(("path", "table"), TABLES)
def test_table_of_a_comparison(path, table):
    runs = pd.read_csv(path)
    assert set(runs.status) == {"finished"}
    selected = select(runs)
    differences = {
        m: of.test.to_numpy() - selected["none"].test.to_numpy() for m, of in selected.items() if m != "none"
    }
    p = correct_after_holm({method: stats.ttest_1samp(values, 0).pvalue for method, values in differences.items()})
    header, *rows = table
    assert [row[0] for row in rows] == [f"`{method}`" for method in dict.fromkeys(runs.method)]
    for row in rows:
        method = row[0].strip("`")
        of = selected[method]
        expected = [row[0], f"{of[RATE].iloc[0]:g}", f"{of.test.mean():.3f}", interval(of.test.to_numpy(), ".3f")]
        if method == "none":
            expected += ["", "", ""]
        else:
            values = differences[method]
            expected += [f"{values.mean():+.3f}".replace("-", "−"), interval(values, "+.3f"), f"{p[method]:.2g}"]
        expected += [f"{of[METRICS.get(name, f'test_{name}')].mean():.3f}" for name in header[7:]]
        assert row == expected


def test_table_of_rates():
    rows, network = read_rows(PAGE, "| network | method | best rate")[1:], ""
    seen = 0
    for name, methods, rate, accuracy, _, _ in rows:
        network = name or network
        kind, layers = re.fullmatch(r"(plain|residual), (\d+) layers", network).groups()
        runs = pd.read_csv(
            DOCS / "data" / "paper" / f"depth-{kind.replace('residual', 'resnet')}{layers}-sgd-small.csv"
        )
        for method in re.findall("`(.+?)`", methods):
            of = select(runs)[method]
            seen += 1
            if rate == "–":
                assert of.validation.mean() <= float(accuracy.removeprefix("≤ ")) + 5e-4
            else:
                assert [f"{of[RATE].iloc[0]:g}", f"{of.validation.mean():.3f}"] == [rate, accuracy]
    assert seen == 5 * len(list((DOCS / "data" / "paper").glob("depth-*.csv")))
