"""Pages and pictures of odd comparisons."""

from pathlib import Path

import pandas as pd
import pytest

from lightning_znorm.compare.report import write_report
from lightning_znorm.compare.store import Store
from tests.compare.helpers import question, result

ANYTHING = [None, 0.1, [1, 2], {"a": 1}, (0.9, 0.99), dict]


def write(asked, results, **options):
    """Write the report of made-up results."""
    store = Store(Path("out"))
    store.folder.mkdir(exist_ok=True)
    store.results = lambda runs: results
    write_report(asked, store, **options)
    return Path("out/summary.md").read_text(), Path("out/report.html").read_text()


def test_other_metrics_of_the_test():
    """Those of the runs at the selected setting that have finished; named apart from the columns of other things."""
    asked = question(methods="none,znorm", sweep={"lr": [0.1, 0.2]}, seeds=2)
    results = [
        result(method, seed, {"lr": lr}, val=lr) | {"test": {"test_acc": 0.5, "test_f1": lr + seed, "seconds": 7.0}}
        for method in ("none", "znorm")
        for lr in (0.1, 0.2)
        for seed in (0, 1)
    ]
    results[-1] |= {"status": "diverged", "test": {}, "curve": []}
    summary, page = write(asked, results)
    assert "| method   | test_f1   | seconds   |" in summary
    assert "| none     | 0.7       | 7         |" in summary
    assert "| znorm    | 0.6       | 7         |" in summary  # a setting without failures is preferred
    assert "Other metrics of the same runs" in page
    frame = pd.read_csv("out/runs.csv")
    assert frame["test_f1"].tolist()[:2] == [0.1, 1.1]
    assert frame["seconds"].tolist() == [2.0] * 8
    assert frame["metric.seconds"].dropna().tolist() == [7.0] * 7
    by_method = pd.read_csv("out/summary.csv").set_index("method")
    assert by_method.loc["none", ["setting", "seeds", "test_f1"]].tolist() == ["lr=0.2", 2, 0.7]
    assert by_method["seconds"].tolist() == [2.0] * 2
    assert by_method["metric.seconds"].tolist() == [7.0] * 2


def test_no_other_metrics():
    summary, _ = write(question(methods="none", sweep=None, seeds=1), [result("none", 0)])
    assert "Other metrics" not in summary


@pytest.mark.parametrize(
    ("changes", "results"),
    [
        ({"methods": "none", "sweep": None, "seeds": 1}, [result("none", 0)]),
        ({"methods": "none", "sweep": None, "seeds": 1}, [result("none", 0, status="crashed", curve=[], test=None)]),
        ({"methods": "none,znorm", "sweep": None}, [result("none", 0, train_loss=[]), result("znorm", 0)]),
        (
            {"methods": "none,znorm", "sweep": {"optimizer": ["SGD", "Adam"], "nesterov": [True, False]}, "seeds": 1},
            [
                result(method, 0, {"optimizer": optimizer, "nesterov": nesterov}, val=0.5 + nesterov / 10)
                for method in ("none", "znorm")
                for optimizer in ("SGD", "Adam")
                for nesterov in (True, False)
            ],
        ),
        (
            {"methods": "none,znorm", "sweep": {"lr": [0.0, 0.1, 100.0]}},
            [result(method, seed, {"lr": lr}) for method in ("none", "znorm") for lr in (0.0, 0.1) for seed in range(3)]
            + [result("none", 0, {"lr": 100.0}, status="diverged", curve=[], test=None)],
        ),
        (
            {"methods": "none,znorm", "sweep": {"decay": ANYTHING, "test": [1, 2]}, "seeds": 1},
            [
                result(m, 0, {"decay": decay, "test": n})
                for m in ("none", "znorm")
                for decay in ANYTHING
                for n in (1, 2)
            ],
        ),
    ],
    ids=["alone", "crashed", "no losses", "names", "zero and unfinished", "anything"],
)
def test_odd_comparisons_have_a_report(changes, results, recwarn):
    summary, page = write(question(**changes), results)
    assert page.count("data:image/png;base64,") == summary.count("![")
    assert Path("out/curves.png").exists()
    assert len(pd.read_csv("out/runs.csv")) == len(results)
    assert not [str(warning.message) for warning in recwarn if "DeprecationWarning" not in str(warning.category)]


def test_fifteen_methods_and_a_long_sweep():
    methods = [f"znorm(min_ndim=2,stop_step={step})" for step in range(100, 1500, 100)]
    lrs = [10.0**-power for power in range(10)]
    results = [
        result(method, seed, {"lr": lr}, val=0.5 + number / 100 + lr / 100 + seed / 50)
        for number, method in enumerate(["none", *methods])
        for lr in lrs
        for seed in range(3)
    ]
    summary, _ = write(question(methods=["none", *methods], sweep={"lr": lrs}), results)
    assert summary.count("\n| znorm(") == 14


def test_what_users_write_is_not_taken_for_html_or_for_a_table():
    results = [result("none", 0, {"name": "a|b"}), result("<b>bold</b>", 0, {"name": "a|b"})]
    asked = question(methods={"none": None, "<b>bold</b>": None}, sweep={"name": ["a|b"]}, seeds=1)
    summary, page = write(asked, results)
    assert "<b>" not in page
    assert "&lt;b&gt;bold" in page
    rows = [line for line in summary.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in rows[:4]}) == 1


def test_commands_are_those_of_the_selected_settings():
    results = [result(m, s, {"lr": lr}, val=lr) for m in ("none", "znorm") for s in (4, 5) for lr in (0.1, 0.2)]
    asked = question(methods="none,znorm", sweep={"lr": [0.1, 0.2]}, seeds=[4, 5])
    summary, page = write(asked, results, show_command=lambda run: f"command <{run}>")
    assert "\ncommand <none, lr=0.2, seed 4>\ncommand <znorm, lr=0.2, seed 4>\n" in summary
    assert "command &lt;none, lr=0.2, seed 4&gt;" in page
