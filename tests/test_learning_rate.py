"""docs/learning_rate.md and its summary in README.md, written again from docs/data/learning_rate.csv."""

import pandas as pd
import pytest

from tests.prose import WORDS, change_each_digit, find_problems, find_prose
from tests.published import DOCS, RATE, ROOT, find_means, find_rate, find_tied, read_rows

PAGE = (DOCS / "learning_rate.md").read_text()
(README,) = [
    entry for entry in (ROOT / "README.md").read_text().split("\n- ") if entry.startswith("**Learning rate.**")
]
KEY = "model.init_args.optimizer.init_args.lr"
RUNS = pd.read_csv(DOCS / "data" / "learning_rate.csv").rename(columns={KEY: RATE})
METHODS = {"none": "SGD", "znorm": "ZNorm"}
OTHERS = ["(300 test images), SGD with momentum 0.9, cosine schedule"]  # of examples/learning_rate.yaml
PROSE = {  # from the first sentence with measured figures on
    "page": (PAGE[PAGE.index("Test accuracy in percent") :], OTHERS),
    "README": (README[README.index("For a ResNet-18") :].replace("\n  ", "\n"), []),
}


def find_tests(method, rate):
    return 100 * RUNS[(RUNS.method == method) & (RUNS[RATE] == rate)].test


def show_test(method, rate):
    return f"{find_tests(method, rate).mean():.1f}"


def write_sentences(runs=RUNS):
    """Return the sentences of the page and of the README."""
    (torch,), (lightning,), (steps,), (epochs,) = (
        runs[name].unique() for name in ("torch", "lightning", "steps", "epochs")
    )
    seeds = WORDS[runs.seed.nunique()]
    rates = {method: find_rate(runs, method) for method in METHODS}
    shared, own = ({method: show_test(method, rates[of or method]) for method in METHODS} for of in ("none", None))
    page = [
        f"{epochs:g} epochs of {steps // epochs:g} steps: the mean and the range of {seeds} seeds; bold is the rate"
        f" that `compare` selects on the validation split. {write_ties(runs)}torch {torch.rpartition('.')[0]},"
        f" Lightning {lightning}, two CPU cores; every run is in",
        f"At {rates['none']:g}, the rate that is selected for SGD, ZNorm has {shared['znorm']} where SGD has"
        f" {shared['none']}. At {rates['znorm']:g}, the rate that is selected for it, ZNorm has {own['znorm']}. A"
        " comparison",
    ]
    others = [f"{rate:g}" for rate in find_tied(find_means(runs, "none")) if rate != rates["none"]]
    tie = f"; {' and '.join(others)} {'is' if len(others) == 1 else 'are'} equally good there" if others else ""
    readme = [
        f"For a ResNet-18 on the digits, with momentum 0.9 and {seeds} seeds:",
        f"At {rates['none']:g}, which the validation split selects for SGD (bold{tie}), ZNorm has {shared['znorm']}"
        f" where SGD has {shared['none']}; at {rates['znorm']:g}, its own, it has {own['znorm']}.",
    ]
    return {"page": page, "README": readme}


def write_ties(runs):
    """Return what must be said of rates that are equally good on the validation split."""
    sentences = []
    for method, name in METHODS.items():
        tied, taken = find_tied(find_means(runs, method)), find_rate(runs, method)
        others = [rate for rate in tied if rate != taken]
        if others:
            *first, last = [f"{rate:g}" for rate in tied]
            which = "of two such neighbors the smaller" if len(tied) == 2 else "of such neighbors the middle one"
            sentences.append(
                f"For {name}, {', '.join(first)} and {last} are equally good there; {which} is taken, and"
                f" {' and '.join(f'{rate:g}' for rate in others)} would have given"
                f" {' and '.join(show_test(method, rate) for rate in others)}. "
            )
    return "".join(sentences)


def test_table():
    assert set(RUNS.status) == {"finished"}
    rows = []
    for rate in sorted(RUNS[RATE].unique(), reverse=True):
        row = [f"{rate:g}"]
        for method in METHODS:
            values, mark = find_tests(method, rate), "**" if rate == find_rate(RUNS, method) else ""
            row.append(f"{mark}{values.mean():.1f}{mark} ({values.min():.1f} to {values.max():.1f})")
        rows.append(row)
    assert read_rows(PAGE, "| learning rate |")[1:] == rows


def test_table_of_the_readme():
    (_, *rates), *rows = read_rows(PROSE["README"][0], "| SGD's learning rate |")
    assert [row[1:] for row in rows] == [
        [
            f"{mark}{show_test(method, float(rate))}{mark}"
            for rate in rates
            for mark in ["**" if float(rate) == find_rate(RUNS, method) else ""]
        ]
        for method in METHODS
    ]
    assert {f"{find_rate(RUNS, method):g}" for method in METHODS} <= set(rates)


@pytest.mark.parametrize("place", PROSE)
def test_sentences(place):
    text, others = PROSE[place]
    prose, sentences = find_prose(text), write_sentences()[place]
    assert find_problems(prose, sentences, others) == []
    assert [changed for changed in change_each_digit(prose) if not find_problems(changed, sentences, others)] == []


def test_a_tie_is_told_and_the_lack_of_one_too():
    clear = RUNS.copy()
    clear.loc[(clear.method == "none") & (clear[RATE] == 0.03), "validation"] = 0.99
    assert "equally good" not in str(write_sentences(clear))
    tied = clear.copy()
    tied.loc[(tied.method == "none") & (tied[RATE] == 0.1), "validation"] = 0.99 + 1e-9
    assert all("equally good there" in "".join(sentences) for sentences in write_sentences(tied).values())
    assert find_rate(tied, "none") == 0.03
