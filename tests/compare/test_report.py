"""Pages and pictures of odd comparisons."""

import json
from pathlib import Path

import pandas as pd
import pytest

from lightning_znorm.compare.report import plots
from lightning_znorm.compare.report.pages import write_report
from tests.compare.helpers import find, question, result

ANYTHING = [None, 0.1, [1, 2], {"a": 1}, (0.9, 0.99), dict]


def write(asked, results, **options):
    """Write the report of made-up results."""
    Path("out").mkdir(exist_ok=True)
    write_report(asked, find(asked, results), Path("out"), **options)
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


def test_equal_values_whose_mean_is_rounded_out_of_their_range(recwarn):
    results = [result(m, s, {"lr": lr}, val=lr) for m in ("none", "znorm") for s in range(3) for lr in (0.1, 0.2)]
    asked = question(methods="none,znorm", sweep={"lr": [0.1, 0.2]}, seeds=3)
    assert sum([0.2] * 3) / 3 > 0.2
    summary, _ = write(asked, results)
    assert "(sweep.png)" in summary
    assert not [str(warning.message) for warning in recwarn if "could not be drawn" in str(warning.message)]
    found = find(asked, results).settings
    assert (found["mean"] == found["low"]).all()


def test_no_other_metrics():
    summary, _ = write(question(methods="none", sweep=None, seeds=1), [result("none", 0)])
    assert "Other metrics" not in summary


@pytest.mark.drawn
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


@pytest.mark.drawn
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
    summary, page = write(asked, results, format_command=lambda run: f"command <{run}>")
    assert "\ncommand <none, lr=0.2, seed 4>\ncommand <znorm, lr=0.2, seed 4>\n" in summary
    assert "command &lt;none, lr=0.2, seed 4&gt;" in page


def test_the_first_lines_say_which_direction_is_better_and_where_the_methods_are_compared():
    for mode, direction in (("min", "lower is better"), ("max", "higher is better")):
        asked = question(methods="none,znorm", sweep=None, seeds=1, mode=mode)
        summary, page = write(asked, [result("none", 0), result("znorm", 0)])
        first, _, second = summary.splitlines()[:3]
        assert first == f"# test_acc of none, znorm ({direction})"
        assert second.startswith(
            "All methods ran at one shared setting, and each may have a better one: sweep the learning"
        )
        assert "(`--compare.sweep model.init_args.lr=…`)" in second
        assert f"<h1>test_acc of none, znorm ({direction})</h1>" in page
    assert "selected" not in summary.replace("no setting was selected", "").replace("selected setting at", "")
    assert "best setting" not in summary + page


@pytest.mark.drawn
def test_dollars_are_drawn_as_they_are(recwarn):
    """And with `_` in front a method is in the legend."""
    labels = {"none": None, r"znorm $\foo$": None, "_hidden": None}
    texts = [r"$\w+$", "$b$", "$"]
    results = [
        result(label, seed, {"note": text}, val=0.5 + number / 10)
        for label in labels
        for number, text in enumerate(texts)
        for seed in (0, 1)
    ]
    asked = question(methods=labels, sweep={"note": texts}, seeds=2)
    summary, page = write(asked, results)
    assert summary.count("![") == page.count("data:image/png;base64,") == 3
    assert not [str(warning.message) for warning in recwarn if "could not be drawn" in str(warning.message)]
    found = find(asked, results)
    figure = plots.plot_sweep(asked, found.settings, found.unit)
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert shown == ["none", r"znorm \$\foo\$", " _hidden"]


@pytest.mark.parametrize("name", ["plot_curves", "plot_sweep", "plot_differences"])
def test_a_picture_that_cannot_be_drawn_is_left_out(name, monkeypatch):
    results = [
        result(m, s, {"lr": lr}, val=lr, test=lr + s) for m in ("none", "znorm") for s in (0, 1) for lr in (0.1, 0.2)
    ]
    asked = question(methods="none,znorm", sweep={"lr": [0.1, 0.2]}, seeds=2)
    write(asked, results)
    picture = {"plot_curves": "curves.png", "plot_sweep": "sweep.png", "plot_differences": "differences.png"}[name]
    assert Path("out", picture).exists()

    def fail(*_):
        raise RuntimeError("no font")

    monkeypatch.setattr(plots, name, fail)
    with pytest.warns(UserWarning, match="could not be drawn"):
        summary, page = write(asked, results)
    assert f"- The picture `{picture}` could not be drawn (RuntimeError: no font)." in summary
    assert page.count("data:image/png;base64,") == summary.count("![") == 2
    assert not Path("out", picture).exists()  # the one of before would belong to other results


def test_spreadsheets_take_nothing_for_a_formula():
    labels = {"none": None, "=cmd|' /C calc'!A0": None, "-x": None}
    results = [result(label, 0, {"n": -1.5, "t": "@t"}, test=-0.25) for label in labels]
    for each in results:
        each["test"]["+metric"] = -2.0
    write(question(methods=labels, sweep={"n": [-1.5], "t": ["'@t'"]}, seeds=1, mode="min"), results)
    runs, summary = pd.read_csv("out/runs.csv"), pd.read_csv("out/summary.csv")
    assert runs["method"].tolist() == summary["method"].tolist() == ["none", "'=cmd|' /C calc'!A0", "'-x"]
    assert runs[["n", "test", "'+metric"]].to_numpy().tolist() == [[-1.5, -0.25, -2.0]] * 3
    assert runs["t"].tolist() == ["'@t"] * 3
    assert summary[["test", "'+metric"]].to_numpy().tolist() == [[-0.25, -2.0]] * 3


def test_labels_settings_and_metrics_are_no_markup():
    label, setting = "a\n\n## b|<script>`$c$`", "x\n|<i>"
    results = [
        result(method, 0, {"name": setting}) | {"test": {"test_acc": 0.5, "test_<b>|\n$": 0.5}}
        for method in ("none", label)
    ]
    asked = question(methods={"none": None, label: None}, sweep={"name": [json.dumps(setting), "y"]}, seeds=1)
    summary, page = write(asked, results)
    assert [line for line in summary.splitlines() if line.startswith("#")] == [
        "# test_acc of none, a ## b\\|\\<script>\\`\\$c\\$\\` (higher is better)",
        "## Other metrics of the same runs",
        "## val_acc of each setting (higher is better)",
        "## Procedure",
    ]
    outside_of_code = "".join(summary.split("`")[::2])
    assert not [tag for tag in ("<script", "<i", "<b") if tag in outside_of_code.replace("\\<", "")]
    rows = [line.replace("\\|", "") for line in summary.splitlines() if line.startswith("|")]
    assert [row.count("|") for row in rows] == [11] * 4 + [3] * 4 + [4] * 4
    assert "<script>" not in page
    assert "`a ## b|<script>'$c$'` against `none`" in summary


def test_names_that_are_also_headings():
    results = [
        result(m, s, {"lr": lr}, val=lr) | {"test": {"test_acc": 0.5, "method": 1.0}}
        for m in ("setting", "none")
        for s in (0, 1)
        for lr in (0.1, 0.2)
    ]
    summary, _ = write(question(methods={"setting": None, "none": None}, sweep={"lr": [0.1, 0.2]}, seeds=2), results)
    assert "| lr=0.1    | 10.0 (10.0 to 10.0)     | 10.0 (10.0 to 10.0)     |" in summary
    assert pd.read_csv("out/summary.csv")["metric.method"].tolist() == [1.0, 1.0]
    assert pd.read_csv("out/runs.csv")["metric.method"].tolist() == [1.0] * 8


def test_many_metrics_and_many_methods(recwarn):
    labels = {f"m{number}": None for number in range(40)}
    results = [result(label, 0, test=0.5 + number / 100) for number, label in enumerate(labels)]
    few = [each | {"test": {"test_acc": 0.5} | {f"t{i}": 0.5 for i in range(200)}} for each in results[:3]]
    write(question(methods=dict.fromkeys(["m0", "m1", "m2"]), sweep=None, seeds=1), few)
    asked = question(methods=labels, sweep=None, seeds=1)
    assert not [str(warning.message) for warning in recwarn if "fragmented" in str(warning.message)]
    found = find(asked, results)
    figure = plots.plot_curves(asked, found.summary, found.curves, found.losses, found.unit, found.axis)
    styles = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in figure.axes[0].lines}
    assert len(styles) == 40
