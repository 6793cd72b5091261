"""Exclusive use of a folder by one command, among all machines that share it."""

import socket
import sys
from pathlib import Path

from filelock import SoftFileLease, Timeout

from lightning_znorm.errors import ArgumentValueError, ComparisonError

LOCK = ".lease"
_DURATION = 20.0  # seconds without renewal, after which an owner on another machine counts as dead
_PATIENCE = 1.0  # seconds to find that an owner on this machine is dead


class Lease:
    """Exclusive use of an existing folder, by a file that its owner renews every few seconds.

    On many network file systems, locks do not reach other machines. An owner on this machine that died is recognized at
    once; one on another machine is watched for a while, on this machine's clock.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lease = SoftFileLease(folder / LOCK, lease_duration=_DURATION, heartbeat_interval=_DURATION / 4)

    def acquire(self) -> None:
        """Acquire the folder; raise ``ValueError`` if another comparison uses it, ``OSError`` if it is read-only."""
        try:
            self._lease.acquire(timeout=_PATIENCE)
        except Timeout:
            owner, is_elsewhere = self._find_owner()
            if not is_elsewhere:
                raise self._make_refusal(owner) from None
            timeout = 1.5 * _DURATION
            wait = f"Waiting up to {timeout:.0f} s to see whether that comparison is still at work …"
            print(f"The folder is in use{owner}. {wait}", file=sys.stderr, flush=True)
            try:
                self._lease.acquire(timeout=timeout)
            except Timeout:
                raise self._make_refusal(owner) from None

    def release(self) -> None:
        """Release the folder."""
        self._lease.release()

    @property
    def is_held(self) -> bool:
        """Whether this command still owns the folder."""
        return self._lease.is_locked and self._lease.compromise is None

    def check(self) -> None:
        """Raise ``ValueError`` if another comparison has taken the folder, as while this machine was suspended."""
        if not self.is_held:
            raise ComparisonError(
                f"The folder `{self._folder}` was taken by another comparison{self._find_owner()[0]}, as this one did"
                " not respond. Run this command again when the other one has ended."
            )

    def _make_refusal(self, owner: str) -> ArgumentValueError:
        return ArgumentValueError(
            f"Another comparison is at work in the folder `{self._folder}`{owner}. Wait for it, or choose another"
            " folder with `--compare.out`."
        )

    def _find_owner(self) -> tuple[str, bool]:
        """Return the owner in words, and whether it may be on another machine."""
        owner = self._lease.owner
        if owner is None:
            return "", True
        return f" on the machine {owner.hostname} (process {owner.pid})", owner.hostname != socket.gethostname()
