"""The tables of findings and their caveats, from results that are made up."""

import math
import re

import pytest

from lightning_znorm.compare.report.layout import format_summary
from tests.compare.helpers import (
    CLEAR,
    MIDDLE,
    answered,
    approx,
    best_at,
    confirmation,
    find,
    question,
    result,
    selection,
)


def test_a_run_that_diverged_counts_with_the_metric_of_its_last_weights():
    asked = question(methods="none", sweep=None, confirm=2)
    results = confirmation(asked, {"none": [0.5, 0.1]})
    results[1]["status"] = "diverged"
    found = find(asked, results)
    assert found.runs["status"].tolist() == ["finished", "diverged"]
    assert found.summary.loc["none", "test"] == approx(0.3)
    assert found.summary.loc["none", "diverged"] == 1


def test_steps_and_seconds_to_the_baselines_final_metric():
    asked = question(methods="none,znorm", sweep=None, confirm=6)
    curves = {
        "none": [[0.2, 0.5, 0.8], [0.2, 0.7, 0.6], *[[0.1, 0.2, 0.7]] * 4],
        "znorm": [[0.3, 0.75, 0.8], [0.3, 0.4, 0.69], *[[0.7]] * 2, *[[0.1, 0.1, 0.7]] * 2],
    }
    results = [
        result(method, seed, curve=curve, seconds={"all": 1.0, "step": 0.5})
        for method, each in curves.items()
        for seed, curve in zip(asked.design.fresh_seeds, each, strict=True)
    ]
    summary = find(asked, results).summary
    # the baseline ends at 0.7 in the median: reached in steps 3, 2, 3, 3, 3, 3 and 2, never, 1, 1, 3, 3
    assert summary["steps_to_baseline"].to_dict() == {"none": 3, "znorm": 2.5}
    assert summary["seconds_to_baseline"].to_dict() == {"none": 1.5, "znorm": 1.25}
    assert summary["reached"].to_dict() == {"none": 6, "znorm": 5}
    for content in results[8:]:
        content["curve"] = content["curve"][:1]
        content["curve"][0]["metrics"]["val_acc"] = 0.1
    found = find(asked, results)
    assert math.isinf(found.summary.loc["znorm", "steps_to_baseline"])
    assert format_summary(asked, found)["steps to none's val_acc"].tolist() == ["3", "not reached (1 of 6 runs)"]


def test_the_median_baseline_reaches_its_own_metric():
    asked = question(methods="none,znorm", sweep=None, confirm=8)
    values = [0.71, 0.72, 0.73, 0.74, 0.75, 0.76, 0.77, 0.78]
    found = find(asked, confirmation(asked, {"none": values, "znorm": values}))
    assert found.summary["reached"].tolist() == [5, 5]
    assert found.summary["steps_to_baseline"].tolist() == [1, 1]


def test_an_analysis_that_was_changed_after_the_first_runs_is_told():
    asked, found = answered(CLEAR, margin=0.02)
    assert not [caveat for caveat in found.caveats if "analysis" in caveat]
    results = selection(asked, best_at(0.01)) + confirmation(asked, CLEAR, MIDDLE)
    same = {"pairs": 6, "width": None, "margin": 0.02}
    assert not find(asked, results, same).caveats
    changed = find(asked, results, {"pairs": 8, "width": None, "margin": None}).caveats
    assert changed == [
        "The analysis was changed after the first runs (`pairs` from 8 to 6; `margin` from None to 0.02): its error"
        " rates hold for one that is fixed beforehand."
    ]


def test_seeds_without_effect_are_a_caveat():
    asked = question(methods="none,znorm", sweep=None, confirm=6)
    results = confirmation(asked, {"none": [0.5] * 6, "znorm": [0.6] * 6}, weights_hash="w", batches_hash="b")
    assert any("All seeds began with the same weights" in caveat for caveat in find(asked, results).caveats)
    results[0]["batches_hash"] = "other"
    assert not any("All seeds" in caveat for caveat in find(asked, results).caveats)


@pytest.mark.parametrize("what", ["weights", "batches"])
def test_methods_that_did_not_share_weights_or_batches(what):
    asked = question(methods="none,znorm", sweep=None, confirm=6)
    results = confirmation(asked, CLEAR)
    assert not find(asked, results).caveats
    results[-1][f"{what}_hash"] = "other"
    (caveat,) = find(asked, results).caveats
    assert re.search(rf"The (initial )?{what} differ between methods in 1 of 6 cases \(first: seed 8\)", caveat)


def test_methods_share_weights_and_batches_at_different_selected_settings():
    asked = question(methods="none,znorm", confirm=6)
    best = {"none": 0.1, "znorm": 0.01}
    results = selection(asked, lambda run: best_at(best[run.method.label])(run))
    results += confirmation(asked, {"none": CLEAR["none"]}, {"lr": 0.1})
    results += confirmation(asked, {"znorm": CLEAR["znorm"]}, {"lr": 0.01}, weights_hash="other")
    assert any("initial weights differ between methods in 6 of 15 cases" in c for c in find(asked, results).caveats)


def test_runs_of_different_versions():
    asked = question(methods="none", sweep=None, confirm=2)
    results = confirmation(asked, {"none": [0.5, 0.5]})
    results[1]["versions"] = {"torch": "3", "lightning": "2"}
    (caveat,) = find(asked, results).caveats
    assert "different versions" in caveat


def test_shares_are_in_percent_and_nothing_else_is():
    for mode, column, expected in (("max", "test_acc (%)", "50.0"), ("min", "test_acc", "0.5")):
        asked = question(methods="none", sweep=None, mode=mode, confirm=1)
        shown = format_summary(asked, find(asked, confirmation(asked, {"none": [0.5]})))
        assert shown[column].tolist() == [expected]


def test_intervals_of_shares_end_at_0_and_100():
    asked = question(methods="none", sweep=None, confirm=2)
    shown = format_summary(asked, find(asked, confirmation(asked, {"none": [0.9, 0.99]})))
    assert shown["95% interval"].tolist() == ["37.3 to 100.0"]


def test_an_infinite_metric_has_diverged():
    asked = question(methods="none", sweep=None, confirm=3)
    found = find(asked, confirmation(asked, {"none": [math.inf, math.nan, 0.5]}))
    assert found.runs["status"].tolist() == ["diverged", "diverged", "finished"]


def test_a_column_has_equally_many_decimals():
    asked = question(methods="none,znorm", sweep=None, confirm=6)
    results = confirmation(asked, {"none": [66.0] * 6, "znorm": [65.4] * 6})
    for content in results:
        content["seconds"] = {"all": 1.0, "step": 0.066 if content["method"] == "none" else 0.0654}
    shown = format_summary(asked, find(asked, results))
    assert shown["test_acc"].tolist() == ["66.0", "65.4"]
    assert shown["ms per step"].tolist() == ["66.0", "65.4"]
