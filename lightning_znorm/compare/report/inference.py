"""Which methods are better than the baseline, as good, or worse: an answer from paired differences."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from lightning_znorm.compare.question.pairs import MARGIN_REMEDY, count_pairs_to_decide
from lightning_znorm.compare.report.sign_flip import (
    equivalence_test,
    find_tolerance,
    invert_sign_flip,
    is_testable,
    sign_flip_test,
)
from lightning_znorm.errors import require_fraction, require_positive, unknown_choice

Answer = Literal["better", "worse", "equivalent", "undecided"]


@dataclass(frozen=True)
class ProbabilityOfBetter:
    """The probability that a method is better than the baseline in a pair.

    Attributes:
        value: The share of pairs in which it is better, a tie counted as half; NaN without pairs.
        low: Lower end of the interval.
        high: Upper end of the interval.

    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Judgement:
    """A method compared with the baseline.

    Attributes:
        mean: The mean difference, in the direction of the metric: negative if the method has the lower one.
        low: Lower end of its confidence interval, -inf if there are too few pairs.
        high: Upper end of the interval.
        p: Two-sided p-value of the sign-flip test.
        p_holm: The p-value after Holm's correction for the number of methods.
        p_equivalence: The p-value of the test of equivalence; NaN without a margin.
        probability: The probability that the method is better in a pair.
        pairs: The number of pairs.
        pairs_needed: The number of pairs to decide the margin; ``None`` without a margin, or if there is no deviation
            to compute it from.
        answer: ``"better"`` or ``"worse"`` than the baseline, ``"equivalent"`` to it within the margin, or
            ``"undecided"``.

    """

    mean: float
    low: float
    high: float
    p: float
    p_holm: float
    p_equivalence: float
    probability: ProbabilityOfBetter
    pairs: int
    pairs_needed: int | None
    answer: Answer


def judge(
    differences_by_method: Mapping[str, Sequence[float]],
    margin: float | None = None,
    mode: Literal["max", "min"] = "max",
    level: float = 0.95,
    rounding: float = 0.0,
) -> dict[str, Judgement]:
    """Judge each method by its paired differences to the baseline.

    A method is *equivalent* if the test of equivalence within the margin is significant; else *better* or *worse* if
    the sign-flip test is, after Holm's correction; else *undecided*. A difference that is certain but smaller than the
    margin is equivalent: the margin says beforehand which differences matter, and `p_holm` and the interval still show
    that there is one. Both kinds of answer keep their error on their own: at most 5% that any method is wrongly called
    better or worse, and at most 5% per method that it is wrongly called equivalent, which is not corrected for the
    number of methods. Without a margin, no method is equivalent, not even if all differences are zero.

    With a single pair, the interval is infinite and p is 1. If all differences are the same, the tests stay exact. A
    difference that is NaN or infinite makes every figure NaN but the number of pairs, as a failed run has no difference
    and must not be left out unseen.

    Args:
        differences_by_method: Method minus baseline in each pair, by the name of the method.
        margin: The smallest size of a difference that matters, in units of the metric, chosen before the runs.
        mode: Whether a metric is better if it is larger, ``"max"``, or smaller, ``"min"``.
        level: The confidence level of the intervals; all tests allow the error that it leaves.
        rounding: The largest error of a difference, for ties; see :func:`sign_flip_test`.

    Returns:
        The judgement by the name of the method. Methods without a p-value are no comparisons for Holm's correction.

    Raises:
        ArgumentValueError: If an argument is out of range.

    Sources: S. Holm, *A Simple Sequentially Rejective Multiple Test Procedure*, Scandinavian Journal of Statistics 6,
    1979. D. Lakens, *Equivalence Tests: A Practical Primer for t Tests, Correlations, and Meta-Analyses*, Social
    Psychological and Personality Science 8, 2017, for differences that are certain and equivalent.

    Example::

        >>> judgements = judge({"znorm": [0.3, 0.1, 0.4, 0.1, 0.5, 0.9, 0.2], "clip": [0.1, -0.2, 0, 0.1, 0.2, -0.1]})
        >>> [(name, found.answer, round(found.p_holm, 3)) for name, found in judgements.items()]
        [('znorm', 'better', 0.031), ('clip', 'undecided', 1.0)]

    """
    if mode not in ("max", "min"):
        raise unknown_choice("mode", mode, ["max", "min"])
    sign = 1 if mode == "max" else -1
    margin = margin if margin is None else require_positive("margin", margin, MARGIN_REMEDY)
    error = 1 - require_fraction("level", level)
    p_values = {
        name: sign_flip_test(differences, rounding=rounding) for name, differences in differences_by_method.items()
    }
    corrected = correct_after_holm(p_values)
    comparisons = sum(not math.isnan(p) for p in p_values.values())
    judgements = {}
    for name, differences in differences_by_method.items():
        values = np.asarray(differences, dtype=float)
        mean = float(values.mean()) if is_testable(values) else math.nan
        low, high = invert_sign_flip(differences, level)
        p_equivalence = math.nan if margin is None else equivalence_test(differences, margin, rounding)
        needed = None
        if margin is not None and is_testable(values) and len(values) > 1:
            needed = count_pairs_to_decide(float(values.std(ddof=1)), margin, level, comparisons=comparisons)
        judgements[name] = Judgement(
            mean,
            low,
            high,
            p_values[name],
            corrected[name],
            p_equivalence,
            probability=estimate_probability([sign * value for value in differences], level, rounding),
            pairs=len(values),
            pairs_needed=needed,
            answer=_answer(sign * mean, corrected[name], p_equivalence, error),
        )
    return judgements


def correct_after_holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return p-values after Holm's correction; those that are NaN are no comparisons.

    Example::

        >>> correct_after_holm({"a": 0.01, "b": math.nan, "c": 0.04})
        {'a': 0.02, 'b': nan, 'c': 0.04}

    """
    tested = {name: p for name, p in p_values.items() if not math.isnan(p)}
    corrected = dict.fromkeys(p_values, math.nan)
    if tested:
        _, holm, *_ = multipletests([*tested.values()], method="holm")
        corrected |= dict(zip(tested, map(float, holm), strict=True))
    return corrected


def estimate_probability(
    differences: Sequence[float], level: float = 0.95, rounding: float = 0.0
) -> ProbabilityOfBetter:
    r"""Return the probability of a positive difference, with Wilson's interval.

    With :math:`\hat p = (\text{positive} + \text{ties} / 2) / n` and the normal quantile :math:`z`, the ends are

    .. math::
        \frac{\hat p + z^2 / 2n \pm z \sqrt{\hat p (1 - \hat p) / n + z^2 / 4n^2}}{1 + z^2 / n}.

    Args:
        differences: A difference per pair, positive if the method is better.
        level: The confidence level.
        rounding: The largest error of a difference; one up to this size is a tie.

    Returns:
        The probability; NaN without pairs, or if a difference is not finite.

    Raises:
        ArgumentValueError: If the level is not between 0 and 1.

    Sources: E. B. Wilson, *Probable Inference, the Law of Succession, and Statistical Inference*, Journal of the
    American Statistical Association 22, 1927. X. Bouthillier and others, *Accounting for Variance in Machine Learning
    Benchmarks*, Proceedings of Machine Learning and Systems 3, 2021, for the probability as a criterion.

    Example::

        >>> estimate_probability([0.2, 0.1, 0.0, -0.1, 0.3, 0.4])
        ProbabilityOfBetter(value=0.75, low=0.364..., high=0.940...)

    """
    error = 1 - require_fraction("level", level)
    values = np.asarray(differences, dtype=float)
    if not is_testable(values):
        return ProbabilityOfBetter(math.nan, math.nan, math.nan)
    tolerance = find_tolerance(values, rounding)
    better = float((values > tolerance).sum() + (np.abs(values) <= tolerance).sum() / 2)
    low, high = proportion_confint(better, len(values), alpha=error, method="wilson")
    return ProbabilityOfBetter(better / len(values), float(low), float(high))


def _answer(gain: float, p_holm: float, p_equivalence: float, error: float) -> Answer:
    if p_equivalence <= error:
        return "equivalent"
    if p_holm <= error:
        return "better" if gain > 0 else "worse"
    return "undecided"
