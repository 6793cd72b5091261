"""The end of the time for a comparison."""

import math
import time

from lightning_znorm.errors import ArgumentValueError

__all__ = ["Deadline", "TimeUpError"]

_MARGIN = 1.1  # ratio of the duration of a run to that of the longest so far


class TimeUpError(Exception):
    """The time for a comparison is up."""


class Deadline:
    """The end of the time for a comparison.

    Args:
        minutes: Time from now on, ``None`` for no limit.

    Raises:
        ValueError: If the number is not positive.

    Example::

        >>> Deadline(1.0).allows(30), Deadline(1.0).allows(90), Deadline(None).allows(1e9)
        (True, False, True)

    """

    def __init__(self, minutes: float | None = None) -> None:
        if minutes is not None and (isinstance(minutes, bool) or not minutes > 0):
            raise ArgumentValueError(f"Expected argument `minutes` to be a positive number, but got {minutes!r}.")
        self.minutes = minutes
        self._end = None if minutes is None else time.monotonic() + 60 * minutes

    @property
    def seconds_left(self) -> float:
        """Remaining seconds, ``inf`` for no limit."""
        return math.inf if self._end is None else max(0.0, self._end - time.monotonic())

    def allows(self, seconds: float) -> bool:
        """Return whether a run that is expected to take this long is likely to end in time."""
        return self._end is None or _MARGIN * seconds < self.seconds_left

    def check(self) -> None:
        """Raise :class:`TimeUpError` if the time is up."""
        if self.seconds_left == 0:
            raise TimeUpError
