"""Selection, tables, verdicts and caveats, from results that are made up."""

import math
import re

import pytest

from lightning_znorm.compare.report.pages import format_settings, format_summary
from tests.compare.helpers import MIDDLE, SWEEP, approx, find, question, result, results_of, selected

LRS = ({"lr": 0.1}, {"lr": 0.01})


def verdicts(tests, **changes):
    """Verdicts where a setting in the middle of the sweep is selected."""
    asked = question(**{"methods": list(tests), "sweep": SWEEP, "seeds": len(next(iter(tests.values()))), **changes})
    return find(asked, results_of(tests, setting=MIDDLE)).verdicts


def test_the_setting_is_selected_on_validation_and_reported_on_test():
    results = []
    for seed in range(3):
        results += [
            result("none", seed, LRS[0], val=0.9, test=0.1 + seed / 100),
            result("none", seed, LRS[1], val=0.8, test=0.99),
            result("znorm", seed, LRS[0], val=0.7, test=0.99),
            result("znorm", seed, LRS[1], val=0.75, test=0.3),
        ]
    asked = question(methods="none,znorm")
    found = find(asked, results)
    assert selected(asked, found) == {"none": "lr=0.1", "znorm": "lr=0.01"}
    assert found.summary.loc["none", "test"] == approx(0.11)
    assert found.summary.loc["znorm", "difference"] == approx(0.19)
    assert found.summary.loc["znorm", "validation"] == approx(0.75)


def test_a_small_metric_is_selected_where_small_is_good():
    results = [result("none", 0, LRS[0], val=0.9), result("none", 0, LRS[1], val=0.8)]
    asked = question(methods="none", mode="min", seeds=1)
    assert selected(asked, find(asked, results)) == {"none": "lr=0.01"}


def test_a_setting_with_failures_is_left_for_one_without():
    results = [result("none", seed, LRS[0], val=0.9) for seed in range(2)]
    results += [result("none", 2, LRS[0], status="diverged", curve=[], test=None)]
    results += [result("none", seed, LRS[1], val=0.6) for seed in range(3)]
    asked = question(methods="none")
    found = find(asked, results)
    assert selected(asked, found) == {"none": "lr=0.01"}
    assert found.summary.loc["none", "failed"] == 1
    assert any(re.search("1 run of `none` diverged or crashed", caveat) for caveat in found.caveats)
    assert "[1 failed]" in format_settings(question(methods="none"), found)["none"][0]


def test_a_lost_metric_is_a_divergence():
    found = find(question(methods="none", sweep=None, seeds=2), [result("none", 0), result("none", 1, val=None)])
    assert found.runs["status"].tolist() == ["finished", "diverged"]
    assert found.summary.loc["none", "seeds"] == 1


def test_of_an_unfinished_comparison_the_setting_is_taken_of_which_most_is_known():
    results = [result("none", seed, LRS[0], val=0.5) for seed in range(2)] + [result("none", 0, LRS[1], val=0.9)]
    asked = question(methods="none")
    found = find(asked, results)
    assert selected(asked, found) == {"none": "lr=0.1"}
    assert found.caveats[0] == "Unfinished: 3 of 6 runs are done."
    assert any("only 2 of 3 seeds" in caveat for caveat in found.caveats)


def test_epochs_to_the_baselines_final_metric():
    results = [
        result("none", 0, curve=[0.2, 0.5, 0.8]),
        result("none", 1, curve=[0.2, 0.7, 0.6]),
        result("znorm", 0, curve=[0.3, 0.75, 0.8]),
        result("znorm", 1, curve=[0.3, 0.4, 0.69]),
    ]
    summary = find(question(methods="none,znorm", sweep=None, seeds=2), results).summary
    # the baseline ends at 0.7 on average
    assert summary["epochs_to_baseline"].to_dict() == {"none": 2.5, "znorm": 2.0}
    assert summary["reached"].to_dict() == {"none": 2, "znorm": 1}


def test_seconds_per_step_are_those_of_the_selected_setting():
    results = [result("none", seed, seconds={"all": 1.0, "step": step}) for seed, step in enumerate([0.01, 0.5, 0.02])]
    assert find(question(methods="none", sweep=None), results).summary.loc["none", "seconds_per_step"] == 0.02


def test_a_clear_difference():
    (verdict,) = verdicts({"none": [0.80, 0.82, 0.81, 0.80], "znorm": [0.85, 0.88, 0.86, 0.86]})
    assert verdict.startswith(
        "`znorm` is 5.5 points better than `none` in test_acc (95% interval 4.6 to 6.4, 4 seeds, p"
    )


def test_a_clear_difference_for_the_worse():
    (verdict,) = verdicts({"none": [0.85, 0.88, 0.86, 0.86], "znorm": [0.80, 0.82, 0.81, 0.80]})
    assert verdict.startswith(
        "`znorm` is 5.5 points worse than `none` in test_acc (95% interval 4.6 to 6.4, 4 seeds, p"
    )


@pytest.mark.parametrize(("shift", "word"), [(-0.5, "better"), (0.5, "worse")])
def test_where_small_is_good(shift, word):
    tests = {"none": [2.0, 2.1, 2.2, 2.05], "znorm": [2.0 + shift, 2.12 + shift, 2.19 + shift, 2.05 + shift]}
    (verdict,) = verdicts(tests, mode="min")
    assert verdict.startswith(f"`znorm` is 0.502 {word}" if shift > 0 else f"`znorm` is 0.498 {word}")
    low, high = map(float, re.search(r"interval (\S+) to (\S+),", verdict).groups())
    assert 0 < low < 0.5 < high


def test_no_difference_that_can_be_told():
    (verdict,) = verdicts({"none": [0.80, 0.82, 0.81], "znorm": [0.83, 0.79, 0.84]})
    assert "`znorm` and `none` do not differ measurably in test_acc (1.0 points better, 95% interval" in verdict
    assert re.search(r"takes about \d+ seeds\)\.$", verdict)


def test_two_seeds_are_too_few_however_clear_it_looks():
    asked = question(methods="none,znorm", sweep=SWEEP, seeds=2)
    found = find(asked, results_of({"none": [0.5, 0.5], "znorm": [0.9, 0.9001]}, setting=MIDDLE))
    assert found.verdicts == [
        "`znorm` against `none`: two seeds are too few to tell (40.0 points better in test_acc with 2 seeds)."
    ]
    assert found.caveats[1].startswith("Two seeds are too few to tell differences from chance")
    assert format_summary(asked, found)["p (Holm)"].tolist() == ["–", "–"]


def test_one_seed():
    assert "one seed is too few to tell" in verdicts({"none": [0.5], "znorm": [0.9]})[0]


def test_methods_that_are_the_same():
    tests = {"none": [0.8, 0.8, 0.8], "znorm": [0.8, 0.8, 0.8]}
    assert verdicts(tests) == ["`znorm` and `none` are the same in test_acc in all 3 seeds."]
    asked = question(methods="none,znorm", sweep=None)
    assert format_summary(asked, find(asked, results_of(tests)))["95% interval"].tolist() == ["–", "–"]


def test_seeds_that_differ_by_the_same_leave_nothing_to_judge_chance_by():
    (verdict,) = verdicts({"none": [0.80, 0.81, 0.82], "znorm": [0.85, 0.86, 0.87]})
    assert verdict == (
        "`znorm` differs from `none` by the same 5.0 points in all 3 seeds (better in test_acc), so that no p-value"
        " can be computed."
    )


def test_seeds_without_effect_are_a_caveat():
    asked = question(methods="none,znorm", sweep=None)
    results = results_of({"none": [0.5] * 3, "znorm": [0.6] * 3}, weights_hash="w", batches_hash="b")
    assert any("All seeds began with the same weights" in caveat for caveat in find(asked, results).caveats)
    results[0]["batches_hash"] = "other"
    assert not any("All seeds" in caveat for caveat in find(asked, results).caveats)


def test_several_methods_are_corrected_for():
    chance = [0.012, 0.031, 0.008, 0.026]
    tests = {"none": [0.5] * 4, **{name: [0.5 + delta for delta in chance] for name in ("clip", "gc", "znorm")}}
    alone = verdicts({name: tests[name] for name in ("none", "znorm")})
    assert "is 1.9 points better" in alone[0]
    for verdict in verdicts(tests):
        assert "do not differ measurably" in verdict
        assert "becomes 0.12 after Holm's correction for 3 comparisons" in verdict


def test_a_baseline_without_runs():
    results = [result("none", 0, status="crashed", curve=[], test=None), result("znorm", 0)]
    found = find(question(methods="none,znorm", sweep=None, seeds=1), results)
    assert found.verdicts == ["No run of the baseline `none` was finished: nothing can be compared with it."]


def test_a_method_without_runs():
    results = [result("znorm", 0, status="crashed", curve=[], test=None), result("none", 0)]
    found = find(question(methods="none,znorm", sweep=None, seeds=1), results)
    assert found.verdicts == ["`znorm`: no run was finished."]
    assert format_summary(question(methods="none,znorm", sweep=None), found)["test_acc (%)"].tolist() == ["50.0", "–"]


def test_no_seed_in_common():
    found = find(question(methods="none,znorm", sweep=None, seeds=2), [result("none", 0), result("znorm", 1)])
    assert "no seed in common" in found.verdicts[0]


@pytest.mark.parametrize(
    ("best", "expected"),
    [
        (0.1, "the highest of the sweep. An even higher value might do better: extend the sweep upwards."),
        (0.001, "the lowest"),
        (0.01, None),
    ],
)
def test_a_rate_at_the_edge_of_the_sweep(best, expected):
    rates = [0.1, 0.01, 0.001]
    results = [result("none", seed, {"lr": lr}, val=0.9 if lr == best else 0.5) for lr in rates for seed in range(3)]
    caveats = [c for c in find(question(methods="none", sweep={"lr": rates}), results).caveats if "of the sweep" in c]
    assert (expected is None) == (not caveats)
    assert all(expected in caveat and "`none`" in caveat for caveat in caveats)


def test_a_sweep_of_names_has_no_edge():
    results = [
        result("none", seed, {"optimizer": name}, val=val)
        for name, val in (("SGD", 0.5), ("Adam", 0.6))
        for seed in range(3)
    ]
    assert not find(question(methods="none", sweep={"optimizer": ["SGD", "Adam"]}), results).caveats


@pytest.mark.parametrize("what", ["weights", "batches"])
def test_methods_that_did_not_share_weights_or_batches(what):
    results = results_of({"none": [0.5, 0.6, 0.7], "znorm": [0.5, 0.6, 0.7]})
    assert not find(question(methods="none,znorm", sweep=None), results).caveats
    results[-1][f"{what}_hash"] = "other"
    (caveat,) = find(question(methods="none,znorm", sweep=None), results).caveats
    assert re.search(rf"The (initial )?{what} differ between methods in 1 of 3 cases \(first: seed 2\)", caveat)


def test_other_settings_may_have_other_weights():
    results = [result("none", 0, {"width": w}, weights_hash=f"w{w}") for w in (4, 8)]
    assert not any("weights" in c for c in find(question(methods="none", sweep={"width": [4, 8]}), results).caveats)


def test_runs_of_different_versions():
    results = [result("none", 0), result("none", 1, versions={"torch": "3", "lightning": "2"}), result("none", 2)]
    (caveat,) = find(question(methods="none", sweep=None), results).caveats
    assert "different versions" in caveat


def test_shares_are_in_percent_and_nothing_else_is():
    percent = format_summary(
        question(methods="none", sweep=None), find(question(methods="none", sweep=None), [result("none", 0)])
    )
    assert percent["test_acc (%)"].tolist() == ["50.0"]
    asked = question(methods="none", sweep=None, mode="min")
    assert format_summary(asked, find(asked, [result("none", 0)]))["test_acc"].tolist() == ["0.5"]


def test_intervals_of_shares_end_at_0_and_100():
    asked = question(methods="none", sweep=None, seeds=2)
    shown = format_summary(asked, find(asked, results_of({"none": [0.9, 0.99]})))
    assert shown["95% interval"].tolist() == ["37.3 to 100.0"]


def test_missing_figures_are_dashes():
    shown = format_summary(
        question(methods="none", sweep=None), find(question(methods="none", sweep=None), [result("none", 0)])
    )
    assert shown["difference"].tolist() == ["–"]
    assert math.isnan(find(question(methods="none", sweep=None), [result("none", 0)]).summary.loc["none", "p"])


def test_an_infinite_metric_has_diverged():
    results = results_of({"none": [0.5] * 3, "znorm": [math.inf, math.nan, 0.5]})
    found = find(question(methods="none,znorm", sweep=None), results)
    assert found.runs["status"].tolist() == ["finished"] * 3 + ["diverged"] * 2 + ["finished"]


def test_a_column_has_equally_many_decimals():
    asked = question(methods="none,znorm", sweep=None, seeds=1)
    results = [
        result(method, 0, val=value, test=value, seconds={"all": 1.0, "step": value / 1000})
        for method, value in (("none", 66.0), ("znorm", 65.4))
    ]
    shown = format_summary(asked, find(asked, results))
    assert shown["test_acc"].tolist() == ["66.0", "65.4"]
    assert shown["ms per step"].tolist() == ["66.0", "65.4"]
