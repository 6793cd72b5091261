"""Intervals and tests against formulas written out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lightning_znorm.compare.report.statistics import differences_to, estimate_mean

VALUES = st.lists(st.floats(-10, 10).map(lambda value: round(value, 3)), min_size=2, max_size=8)


def interval_by_hand(values):
    values = np.asarray(values)
    error = values.std(ddof=1) / math.sqrt(len(values))
    reach = stats.t.ppf(0.975, len(values) - 1) * error
    return values.mean() - reach, values.mean() + reach


def holm_by_hand(p_values):
    order = np.argsort(p_values)
    corrected, largest = np.empty(len(p_values)), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, (len(p_values) - rank) * p_values[index])
        corrected[index] = min(1.0, largest)
    return corrected


@given(VALUES)
@settings(deadline=None)
def test_mean_and_interval(values):
    found = estimate_mean(values)
    assert found.count == len(values)
    assert found.mean == pytest.approx(np.mean(values), abs=1e-12)
    by_hand = interval_by_hand(values) if len({*values}) > 1 else (math.nan, math.nan)
    assert (found.low, found.high) == pytest.approx(by_hand, abs=1e-9, nan_ok=True)


def test_few_values():
    assert math.isnan(estimate_mean([]).mean)
    one = estimate_mean([3.0])
    assert (one.mean, one.count) == (3.0, 1)
    assert math.isnan(one.low)


@given(st.lists(st.lists(st.floats(-1, 1), min_size=4, max_size=4), min_size=1, max_size=4))
@settings(deadline=None, max_examples=8)
def test_paired_differences_are_corrected_after_holm(noise):
    generator = np.random.default_rng(0)
    baseline = dict(enumerate(generator.normal(size=4)))
    others = {
        str(name): {seed: baseline[seed] + generator.normal() + values[seed] for seed in baseline}
        for name, values in enumerate(noise)
    }
    found = differences_to(baseline, others)
    p_values = [stats.ttest_rel(list(others[name].values()), list(baseline.values())).pvalue for name in others]
    assert [found[name].p for name in others] == pytest.approx(p_values, rel=1e-6)
    assert [found[name].p_holm for name in others] == pytest.approx(holm_by_hand(p_values), rel=1e-6)


def test_only_shared_seeds_are_paired():
    found = differences_to({0: 1.0, 1: 2.0, 2: 4.0}, {"a": {2: 5.0, 1: 4.0, 7: 100.0}, "b": {9: 1.0}})
    assert (found["a"].mean, found["a"].count) == (1.5, 2)
    assert found["b"].count == 0
    assert math.isnan(found["b"].p_holm)


def test_equal_differences_cannot_be_judged_and_none_are_no_difference():
    baseline = {0: 0.81, 1: 0.82, 2: 0.83}
    others = {
        "same": baseline,
        "rounded": {seed: float(np.float32(value)) for seed, value in baseline.items()},
        "off": {seed: value + 0.1 for seed, value in baseline.items()},
    }
    found = differences_to(baseline, others)
    assert (found["same"].p, found["rounded"].p) == (1.0, 1.0)
    assert math.isnan(found["off"].p)
    assert math.isnan(found["off"].p_holm)
    assert found["off"].mean == pytest.approx(0.1)


def test_rounding_of_a_method_is_no_evidence_where_the_baseline_is_zero():
    noise = [0.25, 0.25 + 3e-8, 0.25, 0.25 - 3e-8, 0.25]
    found = differences_to(dict.fromkeys(range(5), 0.0), {"a": dict(enumerate(noise))})["a"]
    assert math.isnan(found.p)
    assert found.mean == pytest.approx(0.25)


def test_seeds_needed_have_the_power_that_is_promised():
    generator = np.random.default_rng(1)
    values = generator.normal(0.8, 1.0, size=6)
    needed = differences_to(dict.fromkeys(range(6), 0.0), {"a": dict(enumerate(values))})["a"].seeds_needed
    effect = values.mean() / values.std(ddof=1)
    trials = generator.normal(effect, 1.0, size=(20000, needed))
    power = (stats.ttest_1samp(trials, 0.0, axis=1).pvalue < 0.05).mean()
    fewer = (stats.ttest_1samp(trials[:, : needed - 1], 0.0, axis=1).pvalue < 0.05).mean()
    assert fewer - 0.01 < 0.8 < power + 0.01
