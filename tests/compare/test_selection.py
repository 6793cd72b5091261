"""Which setting of a method is selected, from results that are made up."""

import pytest

from lightning_znorm.compare.report.layout import format_trials
from tests.compare.helpers import MIDDLE, approx, best_at, confirmation, find, question, selected, selection


def test_the_setting_is_selected_on_validation_and_reported_on_the_test_of_fresh_seeds():
    asked = question(methods="none,znorm", confirm=6)
    best = {"none": best_at(0.1), "znorm": best_at(0.01)}
    results = selection(asked, lambda run: best[run.method.label](run))
    results += confirmation(asked, {"none": [0.1 + seed / 100 for seed in range(6)]}, {"lr": 0.1})
    results += confirmation(asked, {"znorm": [0.3] * 6}, {"lr": 0.01})
    found = find(asked, results)
    assert selected(found) == {"none": "lr=0.1", "znorm": "lr=0.01"}
    assert found.summary.loc["none", "test"] == approx(0.125)
    assert found.summary.loc["znorm", "difference"] == approx(0.175)
    assert found.summary["runs"].tolist() == [6, 6]
    assert found.runs["stage"].value_counts().to_dict() == {"selection": 18, "confirmation": 12}
    assert found.is_finished


def test_a_small_metric_is_selected_where_small_is_good():
    asked = question(methods="none", mode="min", confirm=1)
    results = selection(asked, lambda run: -best_at(0.01)(run)) + confirmation(asked, {"none": [0.2]}, MIDDLE)
    assert selected(find(asked, results)) == {"none": "lr=0.01"}


def test_only_the_best_three_settings_have_more_seeds():
    asked = question(methods="none", sweep={"lr": [10.0**-power for power in range(5)]}, confirm=1)
    found = find(asked, selection(asked, best_at(0.01)))
    trials = found.trials.set_index("setting")
    assert trials["seeds"].to_dict() == {"lr=1": 1, "lr=0.1": 3, "lr=0.01": 3, "lr=0.001": 3, "lr=0.0001": 1}
    shown = format_trials(asked, found).set_index("setting")["none"].to_dict()
    assert shown["lr=0.01"] == "**90.1 (90.0 to 90.2)**"
    assert shown["lr=1"] == "70.0"


def test_a_setting_with_a_run_without_a_metric_is_not_selected():
    asked = question(methods="none", confirm=1)
    lost = {("lr=0.01", 1), ("lr=0.001", 0)}
    results = selection(
        asked, lambda run: None if (str(run.setting), run.seed) in lost else best_at(0.01)(run), status="finished"
    )
    found = find(asked, results)
    assert found.plan.selected["none"].values == {"lr": 0.1}
    shown = format_trials(asked, found).set_index("setting")["none"].to_dict()
    assert shown["lr=0.01"] == "1 of 3 failed"
    assert any("2 of 7 runs of `none` in the selection diverged" in caveat for caveat in found.caveats)


def test_a_sweep_of_names_has_no_end():
    asked = question(methods="none", sweep={"optimizer": ["SGD", "Adam"]}, confirm=1)
    results = selection(asked, lambda run: 0.5 + 0.1 * (run.setting.values["optimizer"] == "Adam"))
    assert not find(asked, results + confirmation(asked, {"none": [0.5]}, {"optimizer": "Adam"})).caveats


@pytest.mark.parametrize(
    ("sweep", "best", "expected"),
    [
        ({"lr": [1, 2, 3, 4, 5]}, [2, 3, 4], "lr=3"),
        ({"lr": [1, 2, 3, 4, 5]}, [1, 2], "lr=1"),
        ({"name": ["a", "b", "c"]}, ["a", "b", "c"], "name=b"),
    ],
)
def test_the_middle_of_a_plateau_is_selected(sweep, best, expected):
    ((key, _),) = sweep.items()
    asked = question(methods="none", sweep=sweep, confirm=1)
    found = find(asked, selection(asked, lambda run: 0.9 if run.setting.values[key] in best else 0.5))
    assert str(found.plan.selected["none"]) == expected


def test_how_wide_the_range_of_good_rates_is():
    rates = [10.0**-power for power in range(6)]
    scores = dict(zip(rates, [0.1, 0.85, 0.9, 0.89, 0.5, 0.4], strict=True))
    asked = question(methods="none", sweep={"lr": rates}, confirm=1, margin=None)
    results = selection(asked, lambda run: scores[run.setting.values["lr"]])
    assert any(
        "within a tenth of the spread of all trials of the selected one" in note
        and "`none` from lr=0.1 to lr=0.001" in note
        for note in find(asked, results).notes
    )
    narrow = question(methods="none", sweep={"lr": rates}, confirm=1, margin=0.02)
    assert any("`none` from lr=0.01 to lr=0.001" in note for note in find(narrow, results).notes)
