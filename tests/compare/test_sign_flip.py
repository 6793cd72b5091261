"""The tests and intervals of flipped signs against brute force in exact fractions, SciPy, and properties."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy import stats

from lightning_znorm.compare.report.sign_flip import (
    EXACT_PAIRS,
    equivalence_test,
    find_low_end,
    invert_sign_flip,
    sign_flip_test,
    subset_means,
)
from tests.compare.differences import INFINITE, draw

INTEGERS = st.integers(-6, 6)  # few values, so that ties are frequent
ALTERNATIVES = ("two-sided", "greater", "less")
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


@given(st.lists(INTEGERS, min_size=1, max_size=7), st.integers(1, 8))
@quick
def test_equivalence_is_two_one_sided_tests(differences, margin):
    expected = max(
        share_of_flips(differences, -margin, "greater"),
        share_of_flips(differences, margin, "less"),
    )
    assert equivalence_test(differences, margin) == expected
