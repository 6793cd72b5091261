"""Which learning rates work: the range around the best one."""

from dataclasses import dataclass

import pandas as pd

from examples.map.analysis import CHANCE


@dataclass(frozen=True)
class Range:
    """The range of the rates that work, around the best.

    Attributes:
        best: The selected rate.
        low: The lowest that works.
        high: The highest that works.
        is_low_end: Whether the lowest is the end of what was tried, so that the range may go on.
        is_high_end: The same of the highest.

    """

    best: float
    low: float
    high: float
    is_low_end: bool
    is_high_end: bool

    def __str__(self) -> str:
        return f"{'≤ ' if self.is_low_end else ''}{self.low:g} to {'≥ ' if self.is_high_end else ''}{self.high:g}"


def find_range(tried: pd.DataFrame, chance: float = CHANCE) -> Range:
    """Return the rates at which a method gains at least half of what it gains over guessing at the best one.

    Args:
        tried: A row per rate with its ``validation`` accuracy and whether it is ``selected``; one without an accuracy
            has failed.
        chance: Accuracy of guessing.

    Example::

        >>> tried = pd.DataFrame({"rate": [0.001, 0.01, 0.1, 1.0], "validation": [0.2, 0.6, 0.9, None]})
        >>> print(find_range(tried.assign(selected=[0, 0, 1, 0])))
        0.01 to 0.1

    """
    gains = tried.set_index("rate")["validation"].fillna(chance).sort_index() - chance
    best = float(tried.loc[tried["selected"] == 1, "rate"].item())
    works = gains >= 0.5 * gains[best]
    block = (~works).cumsum()
    rates = [float(rate) for rate in gains.index[works & (block == block[best])]]
    return Range(best, rates[0], rates[-1], rates[0] == gains.index.min(), rates[-1] == gains.index.max())
