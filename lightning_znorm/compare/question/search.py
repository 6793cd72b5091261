"""The search for the value of a number, such as a learning rate, at which a method does best.

The functions are pure: the same finished trials have the same continuation, in whatever order they ended.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_FIRST = (0, -2, 2, -4, 4)  # half decades
_TOLERANCE = 1e-6  # relative, of metrics that are means in float32

Scores = Mapping[int, Sequence[float]]  # of a method, by position: one per seed, higher is better, NaN for none


@dataclass(frozen=True)
class Search:
    """Values about a start, at positions in quarters of a decade.

    Attributes:
        start: The value at position 0.
        low: Lowest value.
        high: Highest value.
        trials: Number of values that each method is tried with.
        finalists: Number of these that are tried with more seeds.
        seeds: Number of seeds that a finalist has in the end.

    """

    start: float
    low: float = 0.0
    high: float = math.inf
    trials: int = 9
    finalists: int = 3
    seeds: int = 3

    def value_at(self, position: int) -> float:
        """Return the value at a position, rounded to three digits.

        Example::

            >>> [Search(1e-3).value_at(position) for position in (-2, 0, 1, 4)]
            [0.000316, 0.001, 0.00178, 0.01]

        """
        return float(f"{self.start * 10 ** (position / 4):.3g}")

    def propose(self, scores: Scores) -> list[int]:
        """Return the positions to try next: five in half decades, then one at a time; none in the end.

        A further one is half a decade beyond the end at which the best is, else a quarter of a decade beside it, on the
        side of its better neighbour. Where nothing has a score, it is a decade below; where all have the same, a decade
        below and above in turn.

        Example::

            >>> search = Search(1e-3)
            >>> search.propose({})
            [-4, -2, 0, 2, 4]
            >>> search.propose({-4: [0.1], -2: [0.5], 0: [0.7], 2: [0.6], 4: [math.nan]})
            [1]
            >>> search.propose({-4: [0.9], -2: [0.5], 0: [0.3], 2: [0.2], 4: [0.1]})
            [-6]

        """
        first = [position for position in _FIRST if self._allows(position)][: self.trials]
        if not scores.keys() >= {*first}:
            return sorted({*first} - scores.keys())
        if len(scores) >= self.trials:
            return []
        return [position for position in self._rank_next(scores) if position not in scores and self._allows(position)][
            :1
        ]

    def select(self, scores: Scores) -> int | None:
        """Return the position with the highest mean, the middle one of several, ``None`` if none has a score.

        Example::

            >>> Search(1e-3).select({0: [0.7, 0.9], 2: [0.8], 4: [0.8], 6: [0.1]})
            2

        """
        means = _average(scores)
        if not means:
            return None
        highest = max(means.values())
        plateau = [position for position in sorted(means) if _is_as_good(means[position], highest)]
        return plateau[(len(plateau) - 1) // 2]

    def list_finalists(self, scores: Scores) -> list[int]:
        """Return the best positions, the best one first; of equals, those nearest to the middle of the plateau."""
        remaining, finalists = dict(scores), []
        while len(finalists) < self.finalists:
            best = self.select(remaining)
            if best is None:
                break
            finalists.append(best)
            del remaining[best]
        return finalists

    def is_settled(self, scores: Scores) -> bool:
        """Return whether the selected position is between others, or at an end of the range."""
        best = self.select(scores)
        if best is None:
            return False
        return all(
            any(direction * (position - best) > 0 for position in scores) or not self._allows(best + direction)
            for direction in (-1, 1)
        )

    def _allows(self, position: int) -> bool:
        return self.low <= self.value_at(position) <= self.high

    def _rank_next(self, scores: Scores) -> list[int]:
        best, means = self.select(scores), _average(scores)
        lowest, highest = min(scores), max(scores)
        if best is None:
            return [lowest - 4, highest + 4]
        if len(means) > 1 and _is_as_good(min(means.values()), max(means.values())):
            return sorted([lowest - 4, highest + 4], key=abs)
        below = max((position for position in scores if position < best), default=best)
        above = min((position for position in scores if position > best), default=best)
        gaps = [(best + end) // 2 for end in (below, above) if abs(best - end) > 2]
        ends = [best - 2] * (below == best) + [best + 2] * (above == best)
        lower, higher = (means.get(position, -math.inf) for position in (below, above))
        directions = (1, -1) if higher >= lower else (-1, 1)
        beside = [best + distance * direction for distance in range(1, 4 * self.trials) for direction in directions]
        return [*gaps, *ends, *beside]


def _average(scores: Scores) -> dict[int, float]:
    """Return the mean of each position that has a score for each seed."""
    means = {position: sum(values) / len(values) for position, values in scores.items() if len(values)}
    return {position: mean for position, mean in means.items() if math.isfinite(mean)}


def _is_as_good(value: float, highest: float) -> bool:
    return value >= highest - _TOLERANCE * max(abs(value), abs(highest))
