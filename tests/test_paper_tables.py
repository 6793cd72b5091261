"""The tables of docs/paper.md, computed again from the runs that are published beside them."""

import re

import pandas as pd
import pytest

from tests.published import (
    DOCS,
    PAPER,
    RATE,
    correct_after_holm,
    find_differences,
    find_means,
    find_range,
    find_sections,
    find_tied,
    read,
    read_rows,
    select,
    show_interval,
)

PAGE = (DOCS / "paper.md").read_text()
METRICS = {"accuracy": "test_acc", "Dice": "test_dice", "IoU": "test_iou", "AUROC": "test_auroc", "F1": "test_f1"}
CHANCE, LEAST = 0.1, 0.03


def read_tables():
    """Yield the runs and the table of each section about a comparison."""
    for title, section in find_sections(PAGE).items():
        paths = re.findall(r"\[Every run\]\((\S+)\)", section)
        if paths:
            yield pytest.param(DOCS / paths[0], read_rows(section, "| method "), id=title)


TABLES = list(read_tables())


def test_all_comparisons_are_found():
    assert len(TABLES) == len(list(PAPER.glob("[!d]*-small.csv")))


@pytest.mark.parametrize(("path", "table"), TABLES)
def test_table_of_a_comparison(path, table):
    runs = pd.read_csv(path)
    assert set(runs.status) == {"finished"}
    selected = select(runs)
    differences = find_differences(selected)
    p = correct_after_holm(differences)
    header, *rows = table
    assert [row[0] for row in rows] == [f"`{method}`" for method in dict.fromkeys(runs.method)]
    for row in rows:
        method = row[0].strip("`")
        of = selected[method]
        expected = [row[0], f"{of[RATE].iloc[0]:g}", f"{of.test.mean():.3f}", show_interval(of.test.to_numpy(), ".3f")]
        if method == "none":
            expected += ["", "", ""]
        else:
            values = differences[method]
            expected += [f"{values.mean():+.3f}".replace("-", "−"), show_interval(values, "+.3f"), f"{p[method]:.2g}"]
        expected += [f"{of[METRICS.get(name, f'test_{name}')].mean():.3f}" for name in header[7:]]
        assert row == expected


def test_table_of_rates():
    expected = []
    for network in ("plain20", "resnet20", "plain56", "resnet56"):
        runs = read(f"depth-{network}-sgd")
        name = f"{network.rstrip('0256').replace('resnet', 'residual')}, {network[-2:]} layers"
        for method in runs.method.unique():
            means = find_means(runs, method)
            cells = ["–"] * 4
            if means.max() >= CHANCE + LEAST:
                low, high, rates = find_range(runs, method, CHANCE)
                below, above = "≤ " * (low == rates[0]), "≥ " * (high == rates[-1])
                factor = f"{'≥ ' if below or above else ''}{float(f'{high / low:.2g}'):g}"
                cells = [", ".join(f"{rate:g}" for rate in find_tied(means)), f"{below}{low:g}", f"{above}{high:g}"]
                cells.append(factor)
            expected.append([name, f"`{method}`", cells[0], f"{means.max():.3f}", *cells[1:]])
            name = ""
    assert read_rows(PAGE, "| network | method | best rate")[1:] == expected
    assert len(expected) == 5 * len(list(PAPER.glob("depth-*.csv")))
