"""Work in pieces: what has to stop after so many minutes."""

import math
import time

from lightning_znorm.errors import ArgumentValueError

__all__ = ["Deadline", "TimeUpError"]

_MARGIN = 1.1  # by which a run may take longer than the longest so far


class TimeUpError(Exception):
    """The time that a comparison has is over."""


class Deadline:
    """The end of the time that a comparison has.

    Args:
        minutes: From now on; ``None`` for no end.

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
        """How long it is until then, ``inf`` for no end."""
        return math.inf if self._end is None else max(0.0, self._end - time.monotonic())

    def allows(self, seconds: float) -> bool:
        """Say whether what has taken so many seconds before is likely to end in time."""
        return self._end is None or _MARGIN * seconds < self.seconds_left

    def check(self) -> None:
        """Raise :class:`TimeUpError` if the time is up."""
        if self.seconds_left == 0:
            raise TimeUpError
