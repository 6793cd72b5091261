"""The search for the value of a number, such as a learning rate, at which a method does best."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from lightning_znorm.compare.question.candidates import Candidates, Scores, average, is_as_good
from lightning_znorm.compare.question.run import Setting

_FIRST = (0, -2, 2, -4, 4)  # half decades


@dataclass(frozen=True)
class Search(Candidates):
    """Values of a key about a start, at positions in quarters of a decade.

    Attributes:
        key: The key, such as ``model.init_args.lr``.
        start: The value at position 0.
        low: Lowest value.
        high: Highest value.
        trials: Number of values that a method is tried with.
        others: Values of other keys.

    """

    key: str
    start: float
    low: float = 0.0
    high: float = math.inf
    trials: int = 9
    others: Mapping[str, Any] = field(default_factory=dict)

    def setting_at(self, position: int) -> Setting:
        """Return the setting at a position.

        Example::

            >>> str(Search("model.init_args.lr", 1e-3).setting_at(2))
            'lr=0.00316'

        """
        return Setting(position, {**self.others, self.key: self.value_at(position)})

    @property
    def first(self) -> Setting:
        """The setting to try first."""
        return self.setting_at(min(self.propose({}), key=abs))

    @property
    def trials_at_most(self) -> int:
        """The largest number of settings that are tried."""
        return self.trials

    @property
    def description(self) -> dict[str, Any]:
        """The search, for JSON."""
        return {name: value for name, value in vars(self).items() if name not in ("finalists", "seeds")}

    def value_at(self, position: int) -> float:
        """Return the value at a position, rounded to three digits.

        Example::

            >>> [Search("lr", 1e-3).value_at(position) for position in (-2, 0, 1, 4)]
            [0.000316, 0.001, 0.00178, 0.01]

        """
        return float(f"{self.start * 10 ** (position / 4):.3g}")

    def propose(self, scores: Scores) -> list[int]:
        """Return the positions to try next: five in half decades, then one at a time; none in the end.

        A further one is in the middle of a gap of more than half a decade beside the best, else half a decade beyond
        the end at which it is, else a quarter of a decade beside it, on the side of its better neighbour. Where nothing
        has a score, it is a decade below; where all have the same, a decade below and above in turn.

        Example::

            >>> search = Search("lr", 1e-3)
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
        untried = (position for position in self._rank_next(scores) if position not in scores)
        return [*islice(filter(self._allows, untried), 1)]

    def is_settled(self, position: int, scores: Scores) -> bool:
        """Return whether a position is between others that were tried, or at an end of the range."""
        beyond = [-1] * (position == min(scores)) + [1] * (position == max(scores))
        return not any(self._allows(position + direction) for direction in beyond)

    def _allows(self, position: int) -> bool:
        return self.low <= self.value_at(position) <= self.high

    def _rank_next(self, scores: Scores) -> list[int]:
        best, means = self.select(scores), average(scores)
        lowest, highest = min(scores), max(scores)
        if best is None:
            return [lowest - 4, highest + 4]
        if len(means) > 1 and is_as_good(min(means.values()), max(means.values())):
            return sorted([lowest - 4, highest + 4], key=abs)
        below = max((position for position in scores if position < best), default=best)
        above = min((position for position in scores if position > best), default=best)
        gaps = [(best + end) // 2 for end in (below, above) if abs(best - end) > 2]
        ends = [best - 2] * (below == best) + [best + 2] * (above == best)
        lower, higher = (means.get(position, -math.inf) for position in (below, above))
        directions = (1, -1) if higher >= lower else (-1, 1)
        beside = [best + distance * direction for distance in range(1, 4 * self.trials) for direction in directions]
        return [*gaps, *ends, *beside]


_STRIDE = 10_000  # positions of a search, of which there are far fewer


@dataclass(frozen=True)
class Crossed(Candidates):
    """A search for each combination of the values of other keys.

    Attributes:
        searches: The searches.

    """

    searches: Sequence[Search]

    def setting_at(self, position: int) -> Setting:
        """Return the setting at a position."""
        number, own = self._locate(position)
        return Setting(position, self.searches[number].setting_at(own).values)

    @property
    def first(self) -> Setting:
        """The setting to try first."""
        return self.searches[0].first

    @property
    def trials_at_most(self) -> int:
        """The largest number of settings that are tried."""
        return sum(search.trials_at_most for search in self.searches)

    @property
    def description(self) -> dict[str, Any]:
        """The searches, for JSON."""
        return {"searches": [search.description for search in self.searches]}

    def propose(self, scores: Scores) -> list[int]:
        """Return the positions to try next."""
        return [
            number * _STRIDE + position
            for number, search in enumerate(self.searches)
            for position in search.propose(self._take(number, scores))
        ]

    def is_settled(self, position: int, scores: Scores) -> bool:
        """Return whether a position is settled in its own search."""
        number, own = self._locate(position)
        return self.searches[number].is_settled(own, self._take(number, scores))

    @staticmethod
    def _locate(position: int) -> tuple[int, int]:
        number = (position + _STRIDE // 2) // _STRIDE
        return number, position - number * _STRIDE

    def _take(self, number: int, scores: Scores) -> dict[int, Sequence[float]]:
        """Return the scores of one search."""
        located = {position: self._locate(position) for position in scores}
        return {own: scores[position] for position, (found, own) in located.items() if found == number}
