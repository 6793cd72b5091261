"""Verdicts that are not settled, and how a setting is selected, from results that are made up."""

import pytest

from lightning_znorm.compare.report.pages import format_settings, format_summary
from lightning_znorm.compare.report.plots import plot_curves
from tests.compare.helpers import MIDDLE, SWEEP, find, question, result, results_of, selected

CLEAR = {"none": [0.80, 0.82, 0.81, 0.80], "znorm": [0.85, 0.88, 0.86, 0.86]}


@pytest.mark.parametrize("sweep", [None, {"lr": [0.1]}])
def test_a_verdict_at_one_shared_setting_is_not_settled_and_nothing_was_selected(sweep):
    asked = question(methods="none,znorm", sweep=sweep, seeds=4)
    found = find(asked, results_of(CLEAR, setting={"lr": 0.1} if sweep else None))
    (verdict,) = found.verdicts
    assert verdict.startswith(
        "At one shared setting, `znorm` is 5.5 points better than `none` in test_acc (95% interval"
    )
    assert verdict.endswith("; each method may do better at another.")
    assert "at one shared setting, with the seeds 0, 1, 2 and 3; no setting was selected." in found.procedure[0]
    assert format_settings(asked, found) is None
    assert not [column for column in format_summary(asked, found) if "selected" in column]
    figure = plot_curves(asked, found.summary, found.curves, found.losses, found.unit, found.axis)
    assert figure.get_suptitle() == "All methods at one shared setting: mean and range of 4 seeds"


def test_a_verdict_on_settings_that_were_selected_says_so():
    asked = question(methods="none,znorm", sweep=SWEEP, seeds=4)
    found = find(asked, results_of(CLEAR, setting=MIDDLE))
    assert found.verdicts[0].startswith("`znorm` is 5.5 points better")
    assert (
        "Its selected setting is the one with the highest mean of `val_acc` on the validation split"
        in (found.procedure[0])
    )
    figure = plot_curves(asked, found.summary, found.curves, found.losses, found.unit, found.axis)
    assert figure.get_suptitle() == "Each method at its selected setting: mean and range of 4 seeds"


def swept(best, tests, rates=(0.1, 0.01, 0.001)):
    """Results in which each method is best at one rate."""
    return [
        result(method, seed, {"lr": lr}, val=0.9 if lr == best[method] else 0.5, test=value)
        for method, values in tests.items()
        for lr in rates
        for seed, value in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("best", "doubt"),
    [
        ({"none": 0.1, "znorm": 0.01}, "Not settled, as the best lr of `none` is the highest of the sweep: `znorm` is"),
        (
            {"none": 0.001, "znorm": 0.001},
            "Not settled, as the best lr of `none` and `znorm` is the lowest of the sweep: ",
        ),
        (
            {"none": 0.1, "znorm": 0.001},
            "Not settled, as the best lr of `none` is the highest of the sweep and the best lr of `znorm` is the",
        ),
        ({"none": 0.01, "znorm": 0.01}, "`znorm` is 5.5 points better"),
    ],
)
def test_a_verdict_at_the_end_of_the_sweep_is_not_settled(best, doubt):
    (verdict,) = find(question(methods="none,znorm", sweep=SWEEP, seeds=4), swept(best, CLEAR)).verdicts
    assert verdict.startswith(doubt)


def test_two_values_have_only_ends():
    asked = question(methods="none,znorm", seeds=4)
    found = find(asked, swept({"none": 0.1, "znorm": 0.01}, CLEAR, rates=(0.1, 0.01)))
    assert found.verdicts[0].startswith(
        "Not settled, as the best lr of `none` is the highest of the sweep and the best lr"
    )
    assert "A sweep of two values has only ends: take more values of lr." in found.caveats


def test_few_seeds_and_the_end_of_the_sweep():
    tests = {name: values[:2] for name, values in CLEAR.items()}
    (verdict,) = find(
        question(methods="none,znorm", seeds=2, sweep=SWEEP), swept(dict.fromkeys(tests, 0.1), tests)
    ).verdicts
    assert verdict.endswith("with 2 seeds; the best lr of `none` and `znorm` is the highest of the sweep).")


@pytest.mark.parametrize("loser", ["none", "znorm"])
def test_a_verdict_of_survivors_is_not_settled(loser):
    lucky, other = [0.3, 0.31, 0.325], [0.5 + 0.01 * seed for seed in range(10)]
    results = []
    for seed in range(10):
        for method in ("none", "znorm"):
            value = other[seed] if method != loser else lucky[seed - 7] if seed >= 7 else None
            changes = {} if value else {"status": "diverged", "curve": []}
            results.append(result(method, seed, MIDDLE, val=value, test=value, **changes))
    asked = question(methods="none,znorm", sweep=SWEEP, seeds=10, mode="min")
    found = find(asked, results)
    (verdict,) = found.verdicts
    sign = "better (lower)" if loser == "znorm" else "worse (higher)"
    assert verdict.startswith(f"Not settled, as `{loser}` failed in 7 of 10 seeds: in the 3 seeds that both finished, ")
    assert verdict.endswith(f"`znorm` is 0.268 {sign} in test_acc.")
    assert format_summary(asked, found)["p (Holm)"].tolist() == ["–", "–"]


def test_methods_that_made_no_step_are_not_compared_as_if_they_had():
    asked, tests = question(methods="none,znorm", sweep=None), {"none": [0.5] * 3, "znorm": [0.5] * 3}
    assert not [caveat for caveat in find(asked, results_of(tests)).caveats if "step" in caveat]
    found = find(asked, results_of(tests, steps=0))
    assert found.verdicts == [
        "Not settled, as both ran at one shared setting and no training step was made by `none` and `znorm`: `znorm`"
        " and `none` are the same in test_acc in all 3 seeds."
    ]
    assert any(caveat.startswith("Runs of `none` and `znorm` made no training step.") for caveat in found.caveats)


@pytest.mark.parametrize(
    ("mode", "values", "better"),
    [
        ("max", [0.9, 0.97333335876, 0.97333335896, 0.5], 0.97334),
        ("min", [0.1, 0.02666664124, 0.02666664104, 0.5], 0.02666),
    ],
)
def test_equal_means_are_ties_however_they_are_rounded(mode, values, better):
    rates = [0.001, 0.003, 0.01, 0.03]
    asked = question(methods="none", sweep={"lr": rates}, seeds=1, mode=mode)
    results = [result("none", 0, {"lr": lr}, val=value) for lr, value in zip(rates, values, strict=True)]
    found = find(asked, results)
    assert selected(asked, found) == {"none": "lr=0.003"}  # of two in the middle the smaller
    assert (
        "2 settings of `none` are equally good in `val_acc` (lr=0.003, lr=0.01); `lr=0.003` is selected."
        in found.caveats
    )
    assert "are ties" in found.procedure[0]
    results[2]["curve"][0]["metrics"]["val_acc"] = better
    found = find(asked, results)
    assert selected(asked, found) == {"none": "lr=0.01"}
    assert not [caveat for caveat in found.caveats if "equally good" in caveat]
    assert "are ties" not in found.procedure[0]


@pytest.mark.parametrize(
    ("sweep", "best", "expected"),
    [
        ({"lr": [1, 2, 3, 4, 5]}, [2, 3, 4], "lr=3"),
        ({"lr": [5, 4, 3, 2, 1]}, [4, 3, 2, 1], "lr=2"),
        ({"lr": [1, 2, 3, 4, 5]}, [1, 4, 5], "lr=1"),
        ({"name": ["a", "b", "c"]}, ["a", "b", "c"], "name=a"),
    ],
)
def test_the_middle_of_a_plateau_is_selected(sweep, best, expected):
    ((key, values),) = sweep.items()
    results = [result("none", 0, {key: value}, val=0.9 if value in best else 0.5) for value in values]
    asked = question(methods="none", sweep=sweep, seeds=1)
    assert selected(asked, find(asked, results)) == {"none": expected}


def test_a_plateau_at_the_end_of_the_sweep_is_an_end():
    rates = [0.001, 0.01, 0.1, 1.0]
    results = [result("none", 0, {"lr": lr}, val=0.9 if lr >= 0.1 else 0.5) for lr in rates]
    asked = question(methods="none", sweep={"lr": rates}, seeds=1)
    found = find(asked, results)
    assert selected(asked, found) == {"none": "lr=0.1"}
    assert any("The best lr of `none`, 1, is the highest of the sweep" in caveat for caveat in found.caveats)
