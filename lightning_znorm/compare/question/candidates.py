"""The settings among which one is selected for each method."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_znorm.compare.question.run import Setting

RESOLUTION = 1e-6  # relative, of metrics that are means in float32

Scores = Mapping[int, Sequence[float]]  # of a method, by position: one per seed, higher is better, NaN for none


@dataclass(frozen=True, kw_only=True)
class Candidates(ABC):
    """Settings at positions, in the order of a swept number.

    The methods are pure: the same finished trials have the same continuation, in whatever order they ended.

    Attributes:
        finalists: Number of settings that are tried with more seeds.
        seeds: Number of seeds that a finalist has in the end.

    """

    finalists: int = 3
    seeds: int = 3

    @abstractmethod
    def propose(self, scores: Scores) -> list[int]:
        """Return the positions to try next, none in the end."""

    @abstractmethod
    def is_settled(self, position: int, scores: Scores) -> bool:
        """Return whether a position is not at an end beyond which a better one may be."""

    @abstractmethod
    def setting_at(self, position: int) -> Setting:
        """Return the setting at a position."""

    @property
    @abstractmethod
    def first(self) -> Setting:
        """The setting to try first."""

    @property
    @abstractmethod
    def trials_at_most(self) -> int:
        """The largest number of settings that are tried."""

    @property
    @abstractmethod
    def description(self) -> dict[str, Any]:
        """The candidates, for JSON."""

    @property
    def only(self) -> Setting | None:
        """The setting, if there is only one, which needs no selection."""
        return None

    def count_runs(self) -> int:
        """Return the largest number of runs that select a setting."""
        finalists = min(self.finalists, self.trials_at_most)
        more = finalists * (self.seeds - 1) if finalists > 1 else 0
        return 0 if self.only is not None else self.trials_at_most + more

    def select(self, scores: Scores) -> int | None:
        """Return the position with the highest mean, the middle one of several, ``None`` if none has a score.

        Example::

            >>> Listed([]).select({0: [0.7, 0.9], 2: [0.8], 4: [0.8], 6: [0.1]})
            2

        """
        means = average(scores)
        if not means:
            return None
        highest = max(means.values())
        plateau = [position for position in sorted(means) if is_as_good(means[position], highest)]
        return plateau[(len(plateau) - 1) // 2]

    def list_finalists(self, scores: Scores) -> list[int]:
        """Return the best positions, the best one first; of equals, those nearest to the middle of the plateau."""
        remaining = dict(scores)
        finalists: list[int] = []
        while len(finalists) < self.finalists:
            best = self.select(remaining)
            if best is None:
                break
            finalists.append(best)
            del remaining[best]
        return finalists


@dataclass(frozen=True)
class Listed(Candidates):
    """Settings that were given.

    Attributes:
        settings: The settings; positions are their numbers.

    """

    settings: Sequence[Setting]

    @property
    def only(self) -> Setting | None:
        """The setting, if there is only one, which needs no selection."""
        return self.settings[0] if len(self.settings) == 1 else None

    @property
    def first(self) -> Setting:
        """The setting to try first."""
        return self.settings[0]

    @property
    def trials_at_most(self) -> int:
        """The number of settings."""
        return len(self.settings)

    @property
    def description(self) -> dict[str, Any]:
        """The settings, for JSON."""
        return {"settings": [dict(setting.values) for setting in self.settings]}

    def propose(self, scores: Scores) -> list[int]:
        """Return all positions that have not been tried."""
        return [position for position in range(len(self.settings)) if position not in scores]

    def is_settled(self, position: int, scores: Scores) -> bool:
        """Return whether no value at a position is the lowest or highest number of its key.

        Example::

            >>> listed = Listed([Setting(number, {"lr": lr}) for number, lr in enumerate([0.1, 0.01, 0.001])])
            >>> [listed.is_settled(position, {}) for position in range(3)]
            [False, True, False]

        """
        for key, value in self.settings[position].values.items():
            values = {setting.values[key] for setting in self.settings}
            if len(values) > 1 and are_numbers(values) and value in (min(values), max(values)):
                return False
        return True

    def setting_at(self, position: int) -> Setting:
        """Return the setting at a position."""
        return self.settings[position]


def average(scores: Scores) -> dict[int, float]:
    """Return the mean of each position that has a score for each seed."""
    means = {position: sum(values) / len(values) for position, values in scores.items() if len(values)}
    return {position: mean for position, mean in means.items() if math.isfinite(mean)}


def is_as_good(value: float, highest: float) -> bool:
    """Return whether two metrics differ by rounding alone."""
    return value >= highest - RESOLUTION * max(abs(value), abs(highest))


def are_numbers(values: Iterable[Any]) -> bool:
    """Return whether all values are numbers."""
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
