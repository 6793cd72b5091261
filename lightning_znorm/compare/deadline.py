"""Work in pieces: what has to stop after so many minutes."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

from lightning_znorm.errors import ArgumentValueError

__all__ = ["Deadline"]

_MARGIN = 1.1  # by which a run may take longer than the longest so far


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

    def __init__(self, minutes: float | None) -> None:
        if minutes is not None and (isinstance(minutes, bool) or not minutes > 0):
            raise ArgumentValueError(f"Expected argument `minutes` to be a positive number, but got {minutes!r}.")
        self.minutes = minutes
        self._end = None if minutes is None else time.monotonic() + 60 * minutes

    @property
    def is_over(self) -> bool:
        """Whether the time is up."""
        return self._end is not None and time.monotonic() >= self._end

    def allows(self, seconds: float) -> bool:
        """Say whether what has taken so many seconds before is likely to end in time."""
        return self._end is None or time.monotonic() + _MARGIN * seconds < self._end

    @contextlib.contextmanager
    def enforced(self) -> Iterator[None]:
        """Send this process SIGTERM when the time is up, if that comes before the end of the block."""
        if self._end is None:
            yield
            return
        timer = threading.Timer(max(0.0, self._end - time.monotonic()), os.kill, (os.getpid(), signal.SIGTERM))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
