"""The analysis of paired differences against brute force in exact fractions, SciPy, and properties."""

import itertools
import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy import stats

from benchmarks import inference_simulation as simulation
from lightning_znorm.compare.question.pairs import count_least_pairs, count_pairs_for_width, count_pairs_to_decide
from lightning_znorm.compare.report.inference import correct_after_holm, estimate_probability, judge
from lightning_znorm.compare.report.sign_flip import (
    EXACT_PAIRS,
    equivalence_test,
    find_low_end,
    invert_sign_flip,
    sign_flip_test,
    subset_means,
)
from lightning_znorm.errors import ArgumentValueError

INTEGERS = st.integers(-6, 6)  # few values, so that ties are frequent
ALTERNATIVES = ("two-sided", "greater", "less")
INFINITE = (-math.inf, math.inf)
UNTESTABLE = [[], [0.1, math.nan, 0.2, 0.3, 0.1, 0.4], [0.1, math.inf, 0.2, 0.3, 0.1, 0.4]]
quick = settings(deadline=None, max_examples=60)


def share_of_flips(differences, shift, alternative):
    """The p-value by its definition: each flip in exact fractions."""
    values = [Fraction(value) - Fraction(shift) for value in differences]
    total = sum(values)
    sums = [
        sum(sign * value for sign, value in zip(signs, values, strict=True))
        for signs in itertools.product((1, -1), repeat=len(values))
    ]
    hits = {
        "greater": [flipped >= total for flipped in sums],
        "less": [flipped <= total for flipped in sums],
        "two-sided": [abs(flipped) >= abs(total) for flipped in sums],
    }[alternative]
    return float(Fraction(sum(hits), len(sums)))


def all_subset_means(differences):
    sums = sizes = np.zeros(1)
    for value in differences:
        sums, sizes = np.concatenate([sums, sums + value]), np.concatenate([sizes, sizes + 1])
    return sums[1:] / sizes[1:]


def draw(pairs, seed=0, shift=0.5):
    return np.random.default_rng(seed).normal(shift, 1.0, pairs)


@given(st.lists(INTEGERS, min_size=1, max_size=7), INTEGERS, st.sampled_from(ALTERNATIVES))
@quick
def test_p_value_is_the_share_of_flips(differences, shift, alternative):
    found = sign_flip_test([value / 4 for value in differences], shift / 4, alternative)
    assert found == share_of_flips(differences, shift, alternative)


@pytest.mark.parametrize("alternative", ALTERNATIVES)
@pytest.mark.parametrize("pairs", [2, 6, 11])
def test_p_value_is_that_of_scipy(pairs, alternative):
    differences = draw(pairs, seed=pairs)
    reference = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative=alternative
    )
    assert sign_flip_test(differences, alternative=alternative) == pytest.approx(reference.pvalue, abs=1e-12)


def test_drawn_flips_come_close_to_all_of_them():
    differences = draw(EXACT_PAIRS + 2, shift=0.7)
    means = {sign: all_subset_means(sign * differences) for sign in (1, -1)}
    exact = 2 * min((1 + (means[sign] <= 0).sum()) / 2**16 for sign in means)
    drawn = sign_flip_test(differences)
    assert 0.01 < exact < 0.2
    assert drawn != exact
    assert drawn == pytest.approx(exact, abs=8 * math.sqrt(exact / 2 / 100_000))
    ends = [sign * np.sort(means[sign])[int(2**16 * 0.025) - 1] for sign in means]
    assert invert_sign_flip(differences) == pytest.approx(ends, abs=0.02)


@pytest.mark.parametrize("pairs", [EXACT_PAIRS, EXACT_PAIRS + 1, 30])
def test_same_data_always_have_the_same_p_value_in_any_order(pairs):
    differences = draw(pairs, shift=0.3)
    again = np.random.default_rng(1).permutation(differences)
    assert sign_flip_test(differences) == sign_flip_test(again)
    assert invert_sign_flip(differences) == invert_sign_flip(again)


def test_p_value_of_drawn_flips_is_never_zero():
    smallest = sign_flip_test(draw(40, shift=10.0))
    assert smallest == 2 / 100_001
    assert sign_flip_test([0.0] * 40) == 1.0


@pytest.mark.parametrize("pairs", [1, 5, 9, EXACT_PAIRS + 1])
def test_sign_and_scale(pairs):
    differences = draw(pairs, seed=pairs)
    low, high = invert_sign_flip(differences)
    assert invert_sign_flip(-differences) == (-high, -low)
    assert invert_sign_flip(8 * differences) == (8 * low, 8 * high)
    assert invert_sign_flip(differences + 3) == pytest.approx((low + 3, high + 3))
    p = sign_flip_test(differences, 0.1)
    assert sign_flip_test(-differences, -0.1) == p
    assert sign_flip_test(8 * differences, 0.8) == p
    assert sign_flip_test(differences + 3, 3.1) == p
    assert sign_flip_test(-differences, -0.1, "less") == sign_flip_test(differences, 0.1, "greater")


def test_ties_of_rounded_metrics_are_ties():
    differences = [0.1, 0.1, 0.2, -0.2, 0.1, -0.1]  # 0.1 + 0.1 is not 0.2 in steps of float32
    noise = np.random.default_rng(0).uniform(-6e-8, 6e-8, 6)
    assert sign_flip_test(differences) == share_of_flips([1, 1, 2, -2, 1, -1], 0, "two-sided")
    assert sign_flip_test(differences + noise, rounding=1e-6) == sign_flip_test(differences)
    assert sign_flip_test(noise, rounding=1e-6) == 1.0
    assert sign_flip_test(np.abs(noise), rounding=0.0) == 2 / 64


@given(st.lists(INTEGERS, min_size=1, max_size=8), st.integers(-28, 28), st.sampled_from([0.5, 0.8, 0.95, 0.99]))
@example([1] * 6, 4, 0.95)
@example([0, 1, 2, 3, 4, 5, 6], 2, 0.95)
@quick
def test_interval_has_exactly_the_shifts_that_are_not_rejected(differences, quarters, level):
    shift = quarters / 4
    low, high = invert_sign_flip(differences, level)
    assume(min(abs(shift - low), abs(shift - high)) > 1e-5 or shift in (low, high))
    assert (low <= shift <= high) == (sign_flip_test(differences, shift) > 1 - level)


@pytest.mark.parametrize("pairs", [12, EXACT_PAIRS + 1, 25])
def test_interval_ends_where_rejection_begins(pairs):
    differences = draw(pairs, seed=pairs)
    low, high = invert_sign_flip(differences)
    for end, outwards in ((low, -1), (high, 1)):
        assert sign_flip_test(differences, end) > 0.05
        assert sign_flip_test(differences, end + outwards * 1e-4) <= 0.05


def test_interval_of_six_pairs_is_their_range_and_of_fewer_is_infinite():
    differences = [0.3, -0.1, 0.7, 0.2, 0.9, 0.4]
    assert invert_sign_flip(differences) == (-0.1, 0.9)
    assert invert_sign_flip(differences[:5]) == INFINITE
    assert invert_sign_flip(differences[:5], level=0.9) == (-0.1, 0.9)
    assert invert_sign_flip([0.3]) == INFINITE


def test_batches_are_the_same_as_one_by_one():
    for pairs in (5, 9, EXACT_PAIRS + 1):
        batch = np.random.default_rng(2).normal(size=(2, 3, pairs))
        ends = find_low_end(subset_means(batch), 0.025)
        assert [[invert_sign_flip(row)[0] for row in rows] for rows in batch] == pytest.approx(ends, abs=1e-12)


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


@given(st.lists(INTEGERS, min_size=1, max_size=7), st.integers(1, 8))
@quick
def test_equivalence_is_two_one_sided_tests(differences, margin):
    expected = max(
        share_of_flips(differences, -margin, "greater"),
        share_of_flips(differences, margin, "less"),
    )
    assert equivalence_test(differences, margin) == expected


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


@pytest.mark.parametrize("name", simulation.NOISE)
@pytest.mark.parametrize("pairs", [6, 9, EXACT_PAIRS + 1])
def test_simulation_uses_the_analysis_of_the_package(name, pairs):
    samples = simulation.draw_differences(np.random.default_rng(4), name, 4, 3, pairs, effect=0.4)
    found = simulation.analyse(samples, margin=1.0, flips=100_000)
    smallest = simulation.smallest_after_holm(found["p"])
    for row, methods in enumerate(samples):
        judged = judge(dict(enumerate(methods)), margin=1.0)
        assert smallest[row] == pytest.approx(min(one.p_holm for one in judged.values()))
        for column, one in judged.items():
            figures = (one.low, one.high, one.p, one.p_equivalence)
            assert [found[key][row, column] for key in ("low", "high", "p", "equivalence")] == pytest.approx(figures)


@pytest.mark.parametrize("name", simulation.NOISE)
def test_simulated_differences_have_the_truth_that_is_claimed(name):
    samples = simulation.draw_differences(np.random.default_rng(0), name, 20_000, 2, 6, effect=0.3)
    assert samples.mean() == pytest.approx(0.3, abs=0.02)
    assert samples.std() == pytest.approx(1.0, abs=0.05)


def test_published_simulation_keeps_the_promises_of_the_analysis():
    results = json.loads(simulation.RESULTS.read_text())
    symmetric = [row for row in results["fixed"] if row["distribution"] != "skewed"]
    assert {row["pairs"] for row in symmetric} == set(simulation.PAIRS)
    error = 3 * math.sqrt(0.05 * 0.95 / results["repetitions"])
    for row in symmetric:
        assert row["coverage"] > 0.95 - error
        assert max(row["wrong_different"], row["wrong_any_of_3"], row["wrong_equivalent"]) < 0.05 + error


def test_simulation_is_repeatable():
    first, second = (simulation.simulate(np.random.default_rng(3), "rounded", 6, 20) for _ in range(2))
    assert first == second
