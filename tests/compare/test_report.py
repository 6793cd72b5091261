"""Reports of odd comparisons."""

import json
from pathlib import Path

import pandas as pd
import pytest

from lightning_znorm.compare.report import illustrations
from lightning_znorm.compare.report.pages import find_report_files, write_report
from tests.compare.helpers import confirmation, find, question, result, selection

ANYTHING = [None, 0.1, [1, 2], {"a": 1}, (0.9, 0.99), dict]


def write(asked, results, **about):
    """Write the report of made-up results."""
    Path("out").mkdir(exist_ok=True)
    write_report(asked, find(asked, results), Path("out"), about)
    return Path("out/summary.md").read_text(), Path("out/report.html").read_text()


def swept(methods="none,znorm", tests=(0.5, 0.6), **changes):
    """A comparison of two rates, of which the second is selected."""
    asked = question(methods=methods, sweep={"lr": [0.1, 0.2]}, confirm=6, **changes)
    results = selection(asked, lambda run: run.setting.values["lr"])
    labels = asked.labels
    results += confirmation(
        asked, {label: [value] * 6 for label, value in zip(labels, tests, strict=True)}, {"lr": 0.2}
    )
    return asked, results


def test_other_metrics_of_the_test():
    """Those of the confirmation; named apart from the columns of other things."""
    asked, results = swept()
    for content in results:
        content["test"] = {"test_acc": 0.5, "test_f1": content["seed"] / 10, "seconds": 7.0}
    summary, page = write(asked, results)
    assert "| method   | test_f1   | seconds   |" in summary
    assert "| none     | 0.55      | 7         |" in summary  # the seeds 3 to 8
    assert "Other metrics" in page
    frame = pd.read_csv("out/runs.csv")
    assert frame["test_f1"].tolist() == (frame["seed"] / 10).tolist()
    assert frame["seconds"].tolist() == [2.0] * len(results)
    assert frame["metric.seconds"].tolist() == [7.0] * len(results)
    by_method = pd.read_csv("out/summary.csv").set_index("method")
    assert by_method.loc["none", ["setting", "runs"]].tolist() == ["lr=0.2", 6]
    assert by_method.loc["none", "test_f1"] == pytest.approx(0.55)
    assert by_method["seconds"].tolist() == [2.0] * 2
    assert by_method["metric.seconds"].tolist() == [7.0] * 2


def test_no_other_metrics():
    summary, _ = write(question(methods="none", sweep=None, confirm=1), [result("none", 3)])
    assert "Other metrics" not in summary


@pytest.mark.parametrize(
    ("changes", "results"),
    [
        ({"methods": "none", "sweep": None, "confirm": 1}, [result("none", 3)]),
        ({"methods": "none", "sweep": None, "confirm": 1}, [result("none", 3, status="crashed", curve=[], test=None)]),
        ({"methods": "none,znorm", "sweep": None}, [result("none", 3, train_loss=[]), result("znorm", 3)]),
        (
            {"methods": "none,znorm", "sweep": {"optimizer": ["SGD", "Adam"], "nesterov": [True, False]}},
            [
                result(method, 0, {"optimizer": optimizer, "nesterov": nesterov}, val=0.5 + nesterov / 10)
                for method in ("none", "znorm")
                for optimizer in ("SGD", "Adam")
                for nesterov in (True, False)
            ],
        ),
        (
            {"methods": "none,znorm", "sweep": {"lr": [0.0, 0.1, 100.0]}},
            [result(method, 0, {"lr": lr}) for method in ("none", "znorm") for lr in (0.0, 0.1)]
            + [result("none", 0, {"lr": 100.0}, status="diverged", curve=[], test=None)],
        ),
        (
            {"methods": "none,znorm", "sweep": {"decay": ANYTHING, "test": [1, 2]}},
            [
                result(m, 0, {"decay": decay, "test": n})
                for m in ("none", "znorm")
                for decay in ANYTHING
                for n in (1, 2)
            ],
        ),
        ({"methods": "none,znorm", "sweep": "lr=auto(0.1) depth=1,2"}, [result("none", 0, {"depth": 1, "lr": 0.1})]),
    ],
    ids=["alone", "crashed", "no losses", "names", "zero and unfinished", "anything", "searched"],
)
def test_odd_comparisons_have_a_report(changes, results, recwarn):
    summary, page = write(question(**changes), results)
    pictures = [*Path("out").glob("*.svg")]
    assert page.count("<svg") >= summary.count("![") == len(pictures)
    assert len(pd.read_csv("out/runs.csv")) == len(results)
    assert not [str(warning.message) for warning in recwarn if "DeprecationWarning" not in str(warning.category)]


def test_fifteen_methods_and_a_long_search():
    methods = ["none", *(f"znorm(min_ndim=2,stop_step={step})" for step in range(100, 1500, 100))]
    asked = question(methods=methods, sweep="lr=auto(1e-3)")
    results = selection(asked, lambda run: 0.9 - abs(run.setting.number - len(run.method.label) % 5) / 100)
    summary, page = write(asked, results)
    assert summary.count("\n| znorm(") == 14
    assert len(page) < 500_000


def test_what_users_write_is_not_taken_for_html_or_for_a_table():
    asked = question(methods={"none": None, "<b>bold</b>": None}, sweep={"name": ["a|b", "c"]})
    results = selection(asked, lambda run: 0.5 + (run.setting.number == 0) / 10)
    summary, page = write(asked, results)
    assert "<b>" not in page
    assert "&lt;b&gt;bold" in page
    rows = [line for line in summary.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in rows[:4]}) == 1


def test_the_commands_repeat_the_comparison_and_single_runs():
    asked, results = swept()
    about = {"command": "lightning-znorm compare --config=<my>.yaml", "package": "lightning.pytorch", "jobs": 2}
    summary, page = write(asked, results, **about)
    assert "\nlightning-znorm compare --config=<my>.yaml\n" in summary
    assert "--config=&lt;my&gt;.yaml" in page
    commands = [line for line in summary.splitlines() if "'--compare.confirm=[3]'" in line]
    assert len(commands) == 2
    assert all("""'--compare.sweep={"lr": [0.2]}'""" in command for command in commands)
    summary, _ = write(asked, results)  # from Python
    assert "lightning-znorm compare --" not in summary


def test_the_first_lines_are_the_question_the_answer_and_where_the_methods_are_compared():
    asked = question(methods="none,znorm", sweep=None, confirm=6)
    summary, page = write(asked, confirmation(asked, {"none": [0.5] * 6, "znorm": [0.6, 0.7] * 3}))
    first, second, third = [line for line in summary.splitlines() if line][:3]
    assert first == "# Does znorm beat none?"
    assert second == "`znorm` is better than `none`."
    assert third.startswith("All methods ran at one shared setting, and each may have a better one")
    assert "(`--compare.sweep lr=auto`)" in third
    assert "Does znorm beat none?</h1>" in page


def test_an_unfinished_comparison_says_how_far_it_is():
    asked, results = swept()
    summary, page = write(asked, results[:-3])
    assert f"Unfinished: {len(results) - 3} of {len(results)} runs are done." in summary
    assert "Unfinished: " in page
    assert "Unfinished" not in "".join(write(asked, results))
    early, _ = write(asked, results[:3])
    assert f"Unfinished: 3 of at least {len(results)} runs are done." in early


@pytest.mark.parametrize("name", ["differences", "sweep", "curves"])
def test_a_picture_that_cannot_be_drawn_is_left_out(name, monkeypatch):
    asked, results = swept()
    write(asked, results)
    before = {path.name for path in Path("out").glob("*.svg")}
    assert f"{name}.svg" in before

    def fail(*_, **__):
        raise RuntimeError("no room")

    monkeypatch.setattr(illustrations.pictures, f"draw_{name}", fail)
    with pytest.warns(UserWarning, match="could not be drawn"):
        summary, _ = write(asked, results)
    assert f"- The picture `{name}.svg` could not be drawn (RuntimeError: no room)." in summary
    assert not Path("out", f"{name}.svg").exists()  # the one of before would belong to other results
    same = {"curves.svg", "losses.svg"} if name == "curves" else {f"{name}.svg"}
    assert {path.name for path in Path("out").glob("*.svg")} == before - same
    assert {path.name for path in find_report_files(Path("out"))} > before - same


def test_pictures_of_others_are_left_alone():
    asked, results = swept()
    write(asked, results)
    Path("out/mine.svg").write_text("mine")
    Path("out/sweep-7.svg").write_text("of an earlier report")
    write(asked, results)
    assert Path("out/mine.svg").read_text() == "mine"
    assert not Path("out/sweep-7.svg").exists()
    assert Path("out/mine.svg") not in find_report_files(Path("out"))


def test_spreadsheets_take_nothing_for_a_formula():
    labels = {"none": None, "=cmd|' /C calc'!A0": None, "-x": None}
    asked = question(methods=labels, sweep={"n": [-1.5], "t": ["'@t'"]}, mode="min")
    results = [result(label, 3, {"n": -1.5, "t": "@t"}, test=-0.25) for label in labels]
    for each in results:
        each["test"]["+metric"] = -2.0
    write(asked, results)
    runs, summary = pd.read_csv("out/runs.csv"), pd.read_csv("out/summary.csv")
    assert runs["method"].tolist() == summary["method"].tolist() == ["none", "'=cmd|' /C calc'!A0", "'-x"]
    assert runs[["n", "test", "'+metric"]].to_numpy().tolist() == [[-1.5, -0.25, -2.0]] * 3
    assert runs["t"].tolist() == ["'@t"] * 3
    assert summary[["test", "'+metric"]].to_numpy().tolist() == [[-0.25, -2.0]] * 3


def test_labels_settings_and_metrics_are_no_markup():
    label, setting = "a\n\n## b|<script>`$c$`", "x\n|<i>"
    asked = question(methods={"none": None, label: None}, sweep={"name": [json.dumps(setting), "y"]})
    results = confirmation(asked, {"none": [0.5] * 8, label: [0.5] * 7 + [0.6]}, {"name": setting})
    for content in results:
        content["test"]["test_<b>|\n$"] = 0.5
    results += selection(asked, lambda run: 0.5 + (run.setting.number == 0) / 10)
    summary, page = write(asked, results)
    assert [line for line in summary.splitlines() if line.startswith("#")] == [
        "# Does a ## b\\|\\<script>'\\$c\\$' beat none?",
        "## Other metrics of the confirmation",
        "## val_acc of each setting in the selection (higher is better)",
        "## Methods",
        "## How to read the tables",
    ]
    outside_of_code = "".join(summary.split("`")[::2])
    assert not [tag for tag in ("<script", "<i", "<b") if tag in outside_of_code.replace("\\<", "")]
    rows = [line.replace("\\|", "") for line in summary.splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows[:4]} == {rows[0].count("|")}
    assert page.count("<script") <= 1  # the page's own
    assert "`a ## b|<script>'$c$'` against `none`" in summary


def test_names_that_are_also_headings():
    asked, results = swept(methods={"setting": None, "none": None})
    for content in results:
        content["test"]["method"] = 1.0
    summary, _ = write(asked, results)
    assert "| lr=0.1    | 10.0 (10.0 to 10.0)     | 10.0 (10.0 to 10.0)     |" in summary
    assert pd.read_csv("out/summary.csv")["metric.method"].tolist() == [1.0, 1.0]
    assert pd.read_csv("out/runs.csv")["metric.method"].tolist() == [1.0] * len(results)


def test_methods_that_tried_other_rates_share_a_table():
    asked = question(methods="none,znorm", sweep="lr={none: auto(0.1), znorm: 1e-5..1e-3}", confirm=6)
    results = selection(asked, lambda run: -abs(run.setting.number))
    summary, _ = write(asked, results)
    table = [line for line in summary.splitlines() if line.startswith("| lr=")]
    rates = [float(line.split("|")[1].strip().removeprefix("lr=")) for line in table]
    assert rates == sorted(rates)
    assert min(rates) >= 1e-5
    assert max(rates) >= 1.0


def test_many_metrics(recwarn):
    asked = question(methods="none,znorm", sweep=None, confirm=6)
    results = confirmation(asked, {"none": [0.5] * 6, "znorm": [0.5] * 6})
    for content in results:
        content["test"] |= {f"t{number}": 0.5 for number in range(200)}
    write(asked, results)
    assert not [str(warning.message) for warning in recwarn if "fragmented" in str(warning.message)]
