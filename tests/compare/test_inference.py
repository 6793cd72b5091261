"""The analysis of paired differences: its answers and figures, and the pairs that it takes."""

import math

import numpy as np
import pytest
from scipy import stats

from lightning_znorm.compare.question.pairs import count_least_pairs, count_pairs_for_width, count_pairs_to_decide
from lightning_znorm.compare.report.inference import correct_after_holm, estimate_probability, judge
from lightning_znorm.compare.report.sign_flip import equivalence_test, invert_sign_flip, sign_flip_test
from lightning_znorm.errors import ArgumentValueError
from tests.compare.differences import INFINITE, draw

UNTESTABLE = [[], [0.1, math.nan, 0.2, 0.3, 0.1, 0.4], [0.1, math.inf, 0.2, 0.3, 0.1, 0.4]]


@pytest.mark.parametrize("differences", UNTESTABLE)
def test_nothing_is_said_without_pairs_or_if_one_is_not_finite(differences):
    assert math.isnan(sign_flip_test(differences))
    assert math.isnan(equivalence_test(differences, 1.0))
    assert all(map(math.isnan, invert_sign_flip(differences)))
    assert all(map(math.isnan, vars(estimate_probability(differences)).values()))
    found = judge({"a": differences, "b": draw(8, shift=5.0)}, margin=0.1)
    assert (found["a"].answer, found["a"].pairs, found["a"].pairs_needed) == ("undecided", len(differences), None)
    assert all(math.isnan(getattr(found["a"], name)) for name in ("mean", "low", "high", "p", "p_holm"))
    assert found["b"].p_holm == found["b"].p == 2 / 2**8


@pytest.mark.parametrize(("successes", "pairs"), [(0, 4), (3, 8), (9, 9), (20, 31)])
def test_probability_without_ties_is_that_of_scipy(successes, pairs):
    found = estimate_probability([0.2] * successes + [-0.7] * (pairs - successes))
    reference = stats.binomtest(successes, pairs).proportion_ci(0.95, method="wilson")
    assert found.value == successes / pairs
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high), abs=1e-12)


def test_ties_are_halves_of_a_probability():
    found = estimate_probability([0.0, 0.0, 1.0, 1e-9], rounding=1e-8)
    assert found == estimate_probability([1.0, -1.0, 2.0, 0.0]) != estimate_probability([1.0, -1.0, 2.0, 1.0])
    assert found.value == 0.625


def test_holm_has_no_comparison_without_a_p_value():
    found = correct_after_holm({"a": 0.02, "b": math.nan, "c": 0.01, "d": 0.6})
    assert [found[name] for name in "acd"] == pytest.approx([0.04, 0.03, 0.6])
    assert math.isnan(found["b"])
    assert math.isnan(correct_after_holm({"a": math.nan})["a"])
    assert correct_after_holm({}) == judge({}) == {}


@pytest.mark.parametrize("comparisons", [1, 2, 3, 10])
@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_least_pairs_are_the_first_that_can_show_a_difference(level, comparisons):
    least = count_least_pairs(level, comparisons)
    smallest = [sign_flip_test(np.ones(pairs)) * comparisons for pairs in (least - 1, least)]
    assert smallest[1] <= 1 - level < smallest[0]


@pytest.mark.parametrize("ratio", [0.7, 1.0])
@pytest.mark.parametrize("comparisons", [1, 3])
def test_pairs_to_decide_have_the_power_that_is_promised(ratio, comparisons):
    pairs = count_pairs_to_decide(ratio, 1.0, comparisons=comparisons)
    fewer = pairs * 2 // 3
    generator = np.random.default_rng(0)
    powers = {}
    for count in (fewer, pairs):
        noise = generator.normal(0.0, ratio, (1000, count))
        differs = np.mean([sign_flip_test(row + 1.0) * comparisons <= 0.05 for row in noise])
        same = np.mean([equivalence_test(row, 1.0) <= 0.05 for row in noise])
        powers[count] = min(differs, same)
    assert powers[fewer] < 0.7
    assert 0.77 < powers[pairs] < 0.9


def test_pairs_to_decide_do_not_know_the_observed_difference():
    values = draw(8, shift=0.0)
    counts = {judge({"a": values + shift}, margin=0.5)["a"].pairs_needed for shift in (0.0, 0.1, 5.0)}
    assert counts == {count_pairs_to_decide(values.std(ddof=1), 0.5)}
    assert judge({"a": values})["a"].pairs_needed is None
    assert judge({"a": values[:1]}, margin=0.5)["a"].pairs_needed is None


def test_pairs_to_decide_grow_with_doubt():
    assert count_pairs_to_decide(0.0, 0.1) == 6
    assert count_pairs_to_decide(0.0, 0.1, comparisons=3) == 7
    assert count_pairs_to_decide(3.0, 0.1) == pytest.approx(900 * (1.6449 + 1.2816) ** 2, rel=1e-3)
    assert count_pairs_to_decide(3.0, 0.1, comparisons=3) == pytest.approx(900 * (2.3940 + 0.8416) ** 2, rel=1e-3)
    assert count_pairs_to_decide(3.0, 0.1, power=0.9) > count_pairs_to_decide(3.0, 0.1)
    assert count_pairs_to_decide(3.0, 0.1, level=0.99) > count_pairs_to_decide(3.0, 0.1)


def test_pairs_for_width_by_hand():
    quantile = 2.200985  # of t with 11 degrees of freedom
    for deviation in (0.016, 0.02, 0.03):
        assert count_pairs_for_width(deviation, 0.01) == math.ceil((quantile * deviation / 0.01) ** 2)
    assert count_pairs_for_width(0.0, 0.01) == count_pairs_for_width(0.015, 0.01) == 12
    assert count_pairs_for_width(0.0316, 0.01) == count_pairs_for_width(1.0, 0.01) == 48
    assert count_pairs_for_width(0.0, 0.01, pilot=5, largest=9) == 5
    assert count_pairs_for_width(1.0, 0.01, pilot=5, largest=9) == 9


CERTAIN = [0.010, 0.012, 0.011, 0.009, 0.010, 0.013, 0.008, 0.011]
LARGE = [value + 0.05 for value in CERTAIN]
MIXED = [0.04, -0.03, 0.02, -0.05, 0.01, 0.06, -0.02, -0.01]


@pytest.mark.parametrize(
    ("differences", "margin", "answer"),
    [
        (CERTAIN, None, "better"),
        (CERTAIN, 0.005, "better"),
        (CERTAIN, 0.02, "equivalent"),  # certain, but smaller than what matters
        (LARGE, 0.02, "better"),
        (MIXED, None, "undecided"),
        (MIXED, 0.02, "undecided"),
        (MIXED, 0.2, "equivalent"),
        ([0.0] * 8, None, "undecided"),
        ([0.0] * 8, 0.02, "equivalent"),
        ([0.1] * 8, 0.02, "better"),
        ([0.1] * 5, 0.02, "undecided"),
        ([0.1], 0.02, "undecided"),
    ],
)
def test_answer(differences, margin, answer):
    opposite = {"better": "worse"}.get(answer, answer)
    negative = [-value for value in differences]
    assert judge({"a": differences}, margin)["a"].answer == answer
    assert judge({"a": negative}, margin)["a"].answer == opposite
    assert judge({"a": negative}, margin, mode="min")["a"].answer == answer
    assert judge({"a": differences}, margin, mode="min")["a"].answer == opposite


def test_figures_keep_the_direction_of_the_metric_and_the_probability_is_of_better():
    highest, lowest = (judge({"a": CERTAIN}, 0.02, mode=mode)["a"] for mode in ("max", "min"))
    assert lowest.mean == highest.mean == pytest.approx(0.0105)
    assert (lowest.low, lowest.high) == (highest.low, highest.high) == invert_sign_flip(CERTAIN)
    assert (lowest.p, lowest.p_equivalence) == (sign_flip_test(CERTAIN), equivalence_test(CERTAIN, 0.02))
    assert (lowest.probability.value, highest.probability.value) == (0.0, 1.0)
    assert math.isnan(judge({"a": CERTAIN})["a"].p_equivalence)


def test_one_pair_and_equal_pairs():
    one = judge({"a": [0.3]}, margin=1.0)["a"]
    assert (one.mean, one.p, one.p_equivalence, one.low, one.high) == (0.3, 1.0, 0.5, *INFINITE)
    equal = judge({"a": [0.25] * 6}, margin=0.1)["a"]
    assert (equal.mean, equal.p, equal.low, equal.high, equal.pairs_needed) == (0.25, 2 / 64, 0.25, 0.25, 6)


def test_answers_are_corrected_for_the_number_of_methods():
    six = LARGE[:6]
    assert judge({"a": six})["a"].answer == "better"
    three = judge({"a": six, "b": six, "c": MIXED[:6]})
    assert (three["a"].answer, three["a"].p, three["a"].p_holm) == ("undecided", 2 / 64, 6 / 64)
    assert judge({"a": six, "b": six, "c": []})["a"].p_holm == 4 / 64
    assert judge({"a": LARGE, "b": LARGE, "c": MIXED})["a"].answer == "better"


def test_level_holds_for_intervals_and_answers():
    five = LARGE[:5]
    assert judge({"a": five}, level=0.9)["a"].answer == "better"
    assert judge({"a": five}, level=0.9)["a"].low == min(five)
    assert judge({"a": LARGE}, level=0.999)["a"].answer == "undecided"


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: sign_flip_test([1.0], alternative="larger"), "alternative"),
        (lambda: invert_sign_flip([1.0], level=1.0), "level"),
        (lambda: invert_sign_flip([1.0], level=95), "level"),
        (lambda: equivalence_test([1.0], 0.0), "margin"),
        (lambda: judge({}, margin=-1.0), "margin"),
        (lambda: judge({}, margin=math.nan), "margin"),
        (lambda: judge({}, mode="maximum"), "mode"),
        (lambda: judge({}, level=0.0), "level"),
        (lambda: estimate_probability([1.0], level=2.0), "level"),
        (lambda: count_least_pairs(comparisons=0), "comparisons"),
        (lambda: count_pairs_to_decide(-1.0, 1.0), "deviation"),
        (lambda: count_pairs_to_decide(math.nan, 1.0), "deviation"),
        (lambda: count_pairs_to_decide(1.0, 0.0), "margin"),
        (lambda: count_pairs_to_decide(1.0, 1.0, power=1.0), "power"),
        (lambda: count_pairs_for_width(1.0, 0.0), "width"),
        (lambda: count_pairs_for_width(1.0, 1.0, pilot=1), "pilot"),
        (lambda: count_pairs_for_width(1.0, 1.0, largest=11), "largest"),
    ],
)
def test_wrong_arguments_are_named(call, argument):
    with pytest.raises(ArgumentValueError, match=f"`?{argument}`?"):
        call()
