"""How many pairs an answer takes, from the deviation of the differences and never from their mean."""

import math

from scipy import stats

from lightning_znorm.errors import (
    ArgumentValueError,
    describe,
    require_count,
    require_fraction,
    require_positive,
    to_finite_number,
)

PILOT, LARGEST = 12, 48  # pairs
MARGIN_REMEDY = "Give the smallest difference that matters."


def count_least_pairs(level: float = 0.95, comparisons: int = 1) -> int:
    r"""Return the number of pairs below which no sign-flip test can show a difference.

    The smallest two-sided p-value of :math:`n` pairs is :math:`2 / 2^n`, and Holm's first step multiplies it by the
    number of comparisons :math:`m`:

    .. math::
        n = \lceil 1 + \log_2(m / \alpha) \rceil

    Args:
        level: The confidence level, 1 - α.
        comparisons: The number of methods that are compared with the baseline.

    Returns:
        The number of pairs.

    Raises:
        ArgumentValueError: If the level is not between 0 and 1, or the number of comparisons not positive.

    Example::

        >>> [count_least_pairs(comparisons=comparisons) for comparisons in (1, 2, 3, 4)]
        [6, 7, 7, 8]

    """
    error = 1 - require_fraction("level", level)
    return math.ceil(1 + math.log2(require_count("comparisons", comparisons, least=1) / error))


def count_pairs_to_decide(
    deviation: float, margin: float, level: float = 0.95, power: float = 0.8, comparisons: int = 1
) -> int:
    r"""Return the number of pairs that decides whether a difference reaches a margin.

    That many pairs find a difference of the size of the margin with the given power, and find equivalence with the same
    power if there is no difference: the larger of both numbers. With normal quantiles :math:`z`, the deviation
    :math:`\sigma` of the differences, the margin :math:`\Delta`, the error :math:`\alpha = 1 - \text{level}`, and
    :math:`\beta = 1 - \text{power}`,

    .. math::
        n_\text{difference} &= (z_{1 - \alpha / 2m} + z_{1 - \beta})^2\, \sigma^2 / \Delta^2
            + z_{1 - \alpha / 2m}^2 / 2 \\
        n_\text{equivalence} &= (z_{1 - \alpha} + z_{1 - \beta / 2})^2\, \sigma^2 / \Delta^2 + z_{1 - \alpha}^2 / 2

    The last terms allow for a deviation that is estimated. For each error, the largest is taken that the flips of so
    few pairs can attain, for example 1/64 on one side instead of 0.025 with 6 pairs. The observed difference has no
    part in it: a power that is computed from it only restates the p-value.

    The formula is for normal differences. At the smallest number of pairs, at which all must have the same sign, the
    power may be 0.7 instead of 0.8.

    Args:
        deviation: Standard deviation of the differences. From few pairs it is itself uncertain: from 6, within a factor
            of about 0.6 to 2.5.
        margin: The smallest size of a difference that matters, positive.
        level: The confidence level; equivalence is tested at the same error on each side.
        power: The probability of an answer.
        comparisons: The number of methods :math:`m` that are compared with the baseline, for Holm's first step.

    Returns:
        The number of pairs, at least :func:`count_least_pairs`.

    Raises:
        ArgumentValueError: If an argument is out of range.

    Sources: W. C. Guenther, *Sample Size Formulas for Normal Theory T Tests*, The American Statistician 35, 1981, for a
    difference. K. F. Phillips, *Power of the Two One-Sided Tests Procedure in Bioequivalence*, Journal of
    Pharmacokinetics and Biopharmaceutics 18, 1990, for the power of the tests of equivalence, of which the formula is
    the normal approximation. J. M. Hoenig and D. M. Heisey, *The Abuse of Power*, The American Statistician 55, 2001,
    against a power from the observed difference.

    Example::

        >>> count_pairs_to_decide(deviation=0.01, margin=0.01), count_pairs_to_decide(deviation=0.02, margin=0.01)
        (10, 36)

    """
    deviation = _require_deviation(deviation)
    ratio = deviation / require_positive("margin", margin, MARGIN_REMEDY)
    error, miss = 1 - require_fraction("level", level), 1 - require_fraction("power", power)
    comparisons = require_count("comparisons", comparisons, least=1)
    return max(_count(error / comparisons / 2, miss, ratio), _count(error, miss / 2, ratio))


def count_pairs_for_width(
    deviation: float, width: float, pilot: int = PILOT, largest: int = LARGEST, level: float = 0.95
) -> int:
    r"""Return the number of pairs for an interval of a given width, from the deviation of the pilot pairs.

    .. math::
        N = \Bigl\lceil \bigl(t_{(1 + \text{level}) / 2,\, n_\text{pilot} - 1}\; s / w\bigr)^2 \Bigr\rceil,
        \qquad n_\text{pilot} \le N \le N_\text{largest}

    Args:
        deviation: Standard deviation :math:`s` of the differences of the pilot pairs.
        width: The distance :math:`w` from the mean to the ends of the interval, half of its length.
        pilot: The number of pilot pairs, which count in the interval, too.
        largest: The largest number of pairs; the interval may then be wider.
        level: The confidence level.

    Returns:
        The number of all pairs, with those of the pilot.

    Raises:
        ArgumentValueError: If an argument is out of range.

    Source: C. Stein, *A Two-Sample Test for a Linear Hypothesis Whose Power is Independent of the Variance*, Annals of
    Mathematical Statistics 16, 1945.

    Example::

        >>> [count_pairs_for_width(deviation, width=0.01) for deviation in (0.01, 0.02, 0.04)]
        [12, 20, 48]

    """
    deviation, width = _require_deviation(deviation), require_positive("width", width, "Give half of a length.")
    pilot = require_count("pilot", pilot, least=2)
    largest = require_count("largest", largest, least=pilot)
    quantile = stats.t.ppf((1 + require_fraction("level", level)) / 2, pilot - 1)
    return int(min(largest, max(pilot, math.ceil((quantile * deviation / width) ** 2))))


def _require_deviation(deviation: float) -> float:
    number = to_finite_number(deviation)
    if number is None or number < 0:
        raise ArgumentValueError(f"Expected argument `deviation` to be 0 or more, but got {describe(deviation)}.")
    return number


def _count(error: float, miss: float, ratio: float) -> int:
    """Return the smallest number of pairs that is enough for the one-sided error that a sign-flip test attains."""
    count = math.ceil(-math.log2(error))
    while True:
        flips = 2 ** min(count, 50)
        quantile = stats.norm.isf(math.floor(flips * error + 1e-9) / flips)
        needed = math.ceil((quantile + stats.norm.isf(miss)) ** 2 * ratio**2 + quantile**2 / 2)
        if needed <= count:
            return count
        count = max(count + 1, math.ceil((stats.norm.isf(error) + stats.norm.isf(miss)) ** 2 * ratio**2))
