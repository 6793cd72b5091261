"""Possession of a folder by one command, on whatever machine."""

import socket
import sys
from pathlib import Path

from filelock import SoftFileLease, Timeout

from lightning_znorm.errors import ArgumentValueError, ComparisonError

LOCK = ".lease"
_DURATION = 20.0  # seconds without a sign of life, after which the owner on another machine is taken for dead
_PATIENCE = 1.0  # seconds in which a dead owner on this machine is found out


class Lease:
    """Possession of a folder, which its owner renews every few seconds.

    A file shows it, as many network file systems keep locks to the machine that asked for them. An owner on this
    machine that has died is known at once; one on another machine is watched for a while, on this machine's clock.

    Args:
        folder: An existing folder.

    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lease = SoftFileLease(folder / LOCK, lease_duration=_DURATION, heartbeat_interval=_DURATION / 4)

    def acquire(self) -> None:
        """Take possession.

        Raises:
            ValueError: If another comparison is at work in the folder.
            OSError: If the folder cannot be written.

        """
        try:
            self._lease.acquire(timeout=_PATIENCE)
        except Timeout:
            where, is_elsewhere = self._find_owner()
            if not is_elsewhere:
                raise self._refusal(where) from None
            print(
                f"The folder is in use{where}, or was: looking for up to {1.5 * _DURATION:.0f} s for signs of life …",
                file=sys.stderr,
                flush=True,
            )
            try:
                self._lease.acquire(timeout=1.5 * _DURATION)
            except Timeout:
                raise self._refusal(where) from None

    def release(self) -> None:
        """Give the folder up."""
        self._lease.release()

    @property
    def is_held(self) -> bool:
        """Whether the folder is still this command's."""
        return self._lease.is_locked and self._lease.compromise is None

    def check(self) -> None:
        """Raise if another comparison has taken the folder, for example while this machine was suspended.

        Raises:
            ComparisonError: Saying which.

        """
        if not self.is_held:
            raise ComparisonError(
                f"The folder `{self._folder}` was taken by another comparison{self._find_owner()[0]}, as this one gave"
                " no sign of life. Leave it to that one, or run this command again when it has ended."
            )

    def _refusal(self, where: str) -> ArgumentValueError:
        return ArgumentValueError(
            f"Another comparison is at work in the folder `{self._folder}`{where}. Wait for it, or choose another"
            " folder with `--compare.out`."
        )

    def _find_owner(self) -> tuple[str, bool]:
        """Return where the owner is, in words, and whether that may be another machine."""
        owner = self._lease.owner
        if owner is None:
            return "", True
        return f" on the machine {owner.hostname} (process {owner.pid})", owner.hostname != socket.gethostname()
