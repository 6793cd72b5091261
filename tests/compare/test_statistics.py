"""Means and intervals against formulas written out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lightning_znorm.compare.report.statistics import estimate_mean

VALUES = st.lists(st.floats(-10, 10).map(lambda value: round(value, 3)), min_size=2, max_size=8)


def interval_by_hand(values):
    values = np.asarray(values)
    error = values.std(ddof=1) / math.sqrt(len(values))
    reach = stats.t.ppf(0.975, len(values) - 1) * error
    return values.mean() - reach, values.mean() + reach


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
