"""The mean over seeds and its interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

_LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95% confidence interval.

    Attributes:
        mean: The mean, NaN without values.
        low: Lower end of the interval, NaN for fewer than two values, or if all are the same.
        high: Upper end of the interval.
        count: Number of values.

    """

    mean: float
    low: float
    high: float
    count: int


def estimate_mean(values: Sequence[float]) -> Estimate:
    """Return the mean and its interval, by Student's t.

    Example::

        >>> estimate_mean([1.0, 2.0, 3.0])
        Estimate(mean=2.0, low=-0.484..., high=4.484..., count=3)

    """
    array = np.asarray(values, dtype=float)
    if not len(array):
        return Estimate(math.nan, math.nan, math.nan, 0)
    mean = float(array.mean())
    if len(array) == 1 or not np.ptp(array):
        return Estimate(mean, math.nan, math.nan, len(array))
    low, high = stats.t.interval(_LEVEL, len(array) - 1, loc=mean, scale=stats.sem(array))
    return Estimate(mean, float(low), float(high), len(array))
