"""Tables of finished comparisons."""

from pathlib import Path

import pandas as pd
import pytest

from examples.collection import RATE, collect, main, publish, read_confirmation, read_trials

METHODS = ["none", "znorm", "clip"]
RATES = {"none": 1e-2, "znorm": 1e-3, "clip": 1e-2}


@pytest.fixture
def make_comparison():

    def make(name, answer="worse", images=300):
        folder = Path("results", name)
        folder.mkdir(parents=True, exist_ok=True)
        trials = [(method, rate, "selection", 0, 0.5) for method in METHODS for rate in (1e-3, 1e-2)]
        confirming = [(method, RATES[method], "confirmation", seed, 0.9) for method in METHODS for seed in range(3, 15)]
        runs = pd.DataFrame(trials + confirming, columns=["method", RATE, "stage", "seed", "validation"])
        runs.assign(test=runs["seed"] / images, status="finished").to_csv(folder / "runs.csv", index=False)
        summary = pd.DataFrame({"method": METHODS, "answer": [None, answer, answer], "pairs": 12})
        summary.to_csv(folder / "summary.csv", index=False)
        return folder

    return make


def test_collect(make_comparison):
    """From the folder of a comparison, whole or unfinished."""
    folder = Path("results", "any")
    folder.mkdir(parents=True)
    assert collect(folder) is None
    assert collect(make_comparison("any", "unfinished")) is None
    confirmation, trials = collect(make_comparison("any"), images=300)
    assert confirmation.columns.tolist() == ["comparison", "seed", *METHODS]
    assert (confirmation["comparison"] == "any").all()
    assert (confirmation["seed"] == confirmation[METHODS].T).all(axis=None)
    assert trials.columns.tolist() == ["comparison", "method", "rate", "validation", "seeds", "selected", "diverged"]
    selected = trials[trials["selected"] == 1]
    assert dict(zip(selected["method"], selected["rate"], strict=True)) == RATES
    metric, _ = collect(folder)
    assert metric["none"].tolist() == pytest.approx([seed / 300 for seed in range(3, 15)])


def test_publish(make_comparison):
    """What is published stays, and is replaced by a newer result of the same name."""
    results, out = Path("results"), Path("published")
    make_comparison("first"), make_comparison("second"), make_comparison("third", "unfinished")
    assert publish(results, out, images=300) == 2
    table = read_confirmation(out, images=300)
    assert table["comparison"].tolist() == ["first"] * 12 + ["second"] * 12
    assert table["znorm"].tolist() == pytest.approx([seed / 300 for seed in range(3, 15)] * 2)
    assert len(read_trials(out)) == 12
    make_comparison("second", images=150)
    for file in ("summary.csv", "runs.csv"):
        (results / "first" / file).unlink()
    assert publish(results, out, images=300) == 1
    again = read_confirmation(out)
    assert again["clip"].tolist() == [*range(3, 15), *range(6, 30, 2)]
    assert len(read_trials(out)) == 12


def test_nothing_to_publish(make_comparison, monkeypatch, capsys):
    make_comparison("only", "unfinished")
    monkeypatch.setattr("sys.argv", ["collection", "results", "--out", "published"])
    with pytest.raises(SystemExit):
        main()
    assert "results has no finished comparison" in capsys.readouterr().err
    assert not Path("published").exists()
