"""The sign-flip test of a mean of paired differences, and what follows from it."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lightning_znorm.compare.question.candidates import RESOLUTION
from lightning_znorm.compare.question.pairs import MARGIN_REMEDY
from lightning_znorm.errors import require_fraction, require_positive, unknown_choice

EXACT_PAIRS = 14
FLIPS = 100_000
_SEED = 20_240_801  # fixed, so that the same differences always have the same p-value

Alternative = Literal["two-sided", "greater", "less"]
Array = NDArray[Any]


def sign_flip_test(
    differences: Sequence[float], shift: float = 0.0, alternative: Alternative = "two-sided", rounding: float = 0.0
) -> float:
    r"""Test whether the mean of paired differences is a given shift.

    If the differences :math:`d_i` are symmetric around the shift :math:`\theta`, each :math:`d_i - \theta` could as
    well have the other sign. The p-value is the share of all flips of signs whose mean is at least as large as that of
    the data. A flip reaches it if the pairs :math:`A` that it turns around sum to zero or less, so that

    .. math::
        p_>(\theta) = 2^{-n}\, \bigl|\{A : A = \emptyset \text{ or } \bar d_A \le \theta\}\bigr|, \qquad
        p = \min(1,\; 2 \min(p_>, p_<)).

    Up to 14 pairs, all :math:`2^n` flips are counted. With more, 100,000 flips are drawn, always the same, and the
    data themselves are counted with them: (1 + hits) / (1 + flips).

    The test needs symmetry. Of differences as skewed as an exponential distribution, 8 to 20 pairs whose true mean is
    the shift are rejected in 8% instead of 5% (`benchmarks/inference_simulation.py`), as with Student's test.

    Args:
        differences: A difference per pair; their order does not matter.
        shift: The mean under the null hypothesis.
        alternative: ``"greater"`` tests against a mean above the shift, ``"less"`` below, ``"two-sided"`` both.
        rounding: The largest error of a difference. Means this close to the shift are ties, and count as hits; at
            least a millionth of the largest difference is allowed.

    Returns:
        The p-value, at least ``2 / 2**n`` if it is two-sided; NaN without pairs, or if a difference is not finite.

    Raises:
        ArgumentValueError: If the alternative is unknown.

    Sources: R. A. Fisher, *The Design of Experiments*, 1935, § 21, for the test. B. Phipson and G. K. Smyth,
    *Permutation P-values Should Never Be Zero*, Statistical Applications in Genetics and Molecular Biology 9, 2010, for
    the p-value of drawn flips.

    Example::

        >>> sign_flip_test([0.3, 0.1, 0.4, 0.1, 0.5, 0.9]), 2 / 2**6
        (0.03125, 0.03125)

    """
    if alternative not in get_args(Alternative):
        raise unknown_choice("alternative", alternative, get_args(Alternative))
    values = np.asarray(differences, dtype=float)
    if not is_testable(values):
        return math.nan
    greater, less = (
        float(compute_tail(subset_means(sign * values), sign * shift, find_tolerance(values, rounding)))
        for sign in (1, -1)
    )
    return {"greater": greater, "less": less, "two-sided": min(1.0, 2 * min(greater, less))}[alternative]


def invert_sign_flip(differences: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    r"""Return the confidence interval of the mean difference: all shifts that the sign-flip test does not reject.

    The one-sided p-value of a shift counts the subset means up to it, so that the ends are order statistics of the
    means :math:`\bar d_A` of all :math:`2^n - 1` subsets of the pairs, with :math:`\alpha = 1 - \text{level}`:

    .. math::
        \bigl[\bar d_{(k)},\; \bar d_{(2^n - k)}\bigr], \qquad k = \lfloor 2^n \alpha / 2 \rfloor.

    The ends belong to the interval, and no tolerance is added to them. With more than 14 pairs, the subsets are those
    of :func:`sign_flip_test`.

    Args:
        differences: A difference per pair; their order does not matter.
        level: The confidence level. An interval of few pairs has a higher one: of 6 pairs, 1 - 2/64 = 0.969.

    Returns:
        Both ends. They are infinite if there are too few pairs for the level, fewer than 6 for 0.95, and NaN without
        pairs, or if a difference is not finite.

    Raises:
        ArgumentValueError: If the level is not between 0 and 1.

    Source: J. A. Hartigan, *Using Subsample Values as Typical Values*, Journal of the American Statistical Association
    64, 1969.

    Example::

        >>> invert_sign_flip([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0])
        (2.0, 6.5)
        >>> invert_sign_flip([1.0, 2.0, 3.0])
        (-inf, inf)

    """
    error = 1 - require_fraction("level", level)
    values = np.asarray(differences, dtype=float)
    if not is_testable(values):
        return math.nan, math.nan
    low, high = (sign * float(find_low_end(subset_means(sign * values), error / 2)) for sign in (1, -1))
    return low, high


def equivalence_test(differences: Sequence[float], margin: float, rounding: float = 0.0) -> float:
    r"""Test whether the mean difference is smaller than a margin, by two one-sided sign-flip tests.

    .. math::
        p = \max\bigl(p_>(-\text{margin}),\; p_<(\text{margin})\bigr)

    Args:
        differences: A difference per pair.
        margin: The smallest size of a difference that matters, positive.
        rounding: The largest error of a difference, see :func:`sign_flip_test`.

    Returns:
        The p-value of the hypothesis that the difference is the margin or more, in either direction; NaN without pairs,
        or if a difference is not finite.

    Raises:
        ArgumentValueError: If the margin is not positive and finite.

    Source: D. J. Schuirmann, *A Comparison of the Two One-Sided Tests Procedure and the Power Approach for Assessing
    the Equivalence of Average Bioavailability*, Journal of Pharmacokinetics and Biopharmaceutics 15, 1987.

    Example::

        >>> equivalence_test([0.1, -0.2, 0.0, 0.3, -0.1], margin=0.5), 1 / 2**5
        (0.03125, 0.03125)

    """
    margin = require_positive("margin", margin, MARGIN_REMEDY)
    above = sign_flip_test(differences, -margin, "greater", rounding)
    return max(above, sign_flip_test(differences, margin, "less", rounding))


def subset_means(differences: Array, flips: int = FLIPS) -> Array:
    """Return the means of the subsets that flips turn around, in the last dimension; that of no pair is -inf.

    Args:
        differences: Of shape ``(..., pairs)``, with at least one pair.
        flips: The number of flips that are drawn if there are more than 14 pairs.

    """
    weights, is_empty = _weigh_subsets(differences.shape[-1], flips)
    means: Array = np.sort(differences, axis=-1) @ weights  # sorted: their order does not matter for drawn flips either
    means[..., is_empty] = -np.inf
    return means


def compute_tail(means: Array, shift: float, tolerance: Array) -> Array:
    """Return the one-sided p-value of a shift against a larger mean, from the means of subsets."""
    tail: Array = (means <= shift + tolerance[..., None]).mean(axis=-1)
    return tail


def find_low_end(means: Array, error: float) -> Array:
    """Return the lowest shift whose one-sided p-value is above an error, from the means of subsets."""
    rejected = math.floor(error * means.shape[-1] + 1e-9)  # 1 - level is not exact
    end: Array = np.partition(means, rejected, axis=-1)[..., rejected]
    return end


def find_tolerance(differences: Array, rounding: float) -> Array:
    """Return the distance from a shift up to which a mean is a tie."""
    tolerance: Array = np.maximum(rounding, RESOLUTION * np.abs(differences).max(axis=-1))
    return tolerance


def is_testable(differences: Array) -> bool:
    """Return whether there are differences, and all of them are finite."""
    return bool(differences.size) and bool(np.isfinite(differences).all())


@lru_cache(maxsize=1)
def _weigh_subsets(pairs: int, flips: int) -> tuple[Array, Array]:
    """Return a column per subset, 1 / size for its pairs, and which subsets are empty; the first one is."""
    if pairs <= EXACT_PAIRS:
        subsets = np.arange(2**pairs) >> np.arange(pairs)[:, None] & 1
    else:
        drawn = np.random.default_rng(_SEED).integers(0, 2, (pairs, flips), dtype=np.int8)
        subsets = np.hstack([np.zeros((pairs, 1), np.int8), drawn])
    sizes = subsets.sum(axis=0)
    return subsets / np.maximum(sizes, 1), sizes == 0
