"""Means, intervals and tests over seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from lightning_znorm.compare.question.candidates import RESOLUTION

MIN_SEEDS = 3
_LEVEL = 0.95
_SMALL_EFFECT, _LARGE_EFFECT = 0.05, 4.0


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


@dataclass(frozen=True)
class Difference(Estimate):
    """A mean difference to the baseline over the seeds that both have.

    Attributes:
        p: Two-sided p-value of the paired t-test; 1 if there is no difference, NaN for fewer than two values, or if all
            are the same.
        p_holm: The p-value after Holm's correction for the number of comparisons.
        seeds_needed: Number of seeds to detect a difference of this size with a power of 0.8, at a level of 5% divided
            by the number of comparisons; ``None`` if it cannot be estimated.

    """

    p: float
    p_holm: float
    seeds_needed: int | None


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


def differences_to(baseline: Mapping[int, float], others: Mapping[str, Mapping[int, float]]) -> dict[str, Difference]:
    """Compare methods with a baseline, seed by seed.

    Args:
        baseline: Metric by seed.
        others: Metric by seed of each other method.

    Returns:
        Method minus baseline, over the seeds that both have; p-values are corrected after Holm, *A Simple Sequentially
        Rejective Multiple Test Procedure*, Scand. J. Statist. 6, 1979.

    Example::

        >>> differences = differences_to({0: 0.80, 1: 0.82, 2: 0.81}, {"znorm": {0: 0.85, 1: 0.88, 2: 0.86}})
        >>> round(differences["znorm"].mean, 3), round(differences["znorm"].p, 3)
        (0.053, 0.004)

    """
    paired = {
        name: [metric[seed] - baseline[seed] for seed in baseline if seed in metric] for name, metric in others.items()
    }
    p_values = {
        name: _compute_p_value(values, [*baseline.values(), *others[name].values()]) for name, values in paired.items()
    }
    tested = [name for name, p in p_values.items() if not math.isnan(p)]
    corrected = dict.fromkeys(paired, math.nan)
    if tested:
        _, holm, *_ = multipletests([p_values[name] for name in tested], method="holm")
        corrected |= dict(zip(tested, holm, strict=True))
    return {
        name: Difference(
            **vars(estimate_mean(values)),
            p=p_values[name],
            p_holm=float(corrected[name]),
            seeds_needed=_count_seeds_needed(values, comparisons=len(tested)),
        )
        for name, values in paired.items()
    }


def _compute_p_value(values: Sequence[float], metrics: Sequence[float]) -> float:
    if len(values) < 2:
        return math.nan
    rounding = RESOLUTION * max(map(abs, metrics))
    if np.ptp(values) <= rounding:
        return 1.0 if np.max(np.abs(values)) <= rounding else math.nan
    return float(stats.ttest_1samp(values, 0.0).pvalue)


def _count_seeds_needed(values: Sequence[float], comparisons: int) -> int | None:
    if len(values) < 2 or not np.ptp(values) or not np.mean(values):
        return None
    effect = abs(np.mean(values)) / np.std(values, ddof=1)
    if not _SMALL_EFFECT < effect < _LARGE_EFFECT:  # outside, the search does not converge
        return MIN_SEEDS if effect >= _LARGE_EFFECT else None
    level = (1 - _LEVEL) / comparisons
    needed = TTestPower().solve_power(effect_size=effect, alpha=level, power=0.8, alternative="two-sided")
    return max(MIN_SEEDS, math.ceil(float(np.asarray(needed).item())))
