"""The commands at work in a folder, among all machines that share it, and what each of them has claimed."""

import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import SoftFileLease, Timeout

from lightning_znorm.compare.files import explain, write_atomically
from lightning_znorm.errors import ComparisonError

LOCK, COMMANDS = ".lease", ".commands"
_DURATION = 20.0  # seconds without renewal, after which a command on another machine counts as dead
_PATIENCE = 3 * _DURATION  # for a lock that is held for milliseconds


class Claims:
    """The claims of this command in an existing folder.

    Each command has a lease, a file that it renews every few seconds; a claim is a file that names a command, and
    counts as long as that command lives. Locks of many network file systems do not reach other machines, and clocks may
    differ by minutes: a command on this machine that died is recognized at once, and one on another machine by a lease
    that has not changed for 20 seconds of this machine's clock.

    Args:
        folder: The folder.

    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._commands = folder / COMMANDS
        self.name = uuid.uuid4().hex
        self._lock = _make_lease(folder / LOCK)
        self._lease = _make_lease(self._get_lease_file(self.name))
        self._others: dict[str, SoftFileLease] = {}

    def join(self) -> None:
        """Begin to work in the folder; raise ``OSError`` if it is read-only."""
        self._commands.mkdir(exist_ok=True)
        self._lease.acquire(timeout=0)

    def leave(self) -> None:
        """Release all claims, and the folder."""
        with suppress(OSError):
            for claim in self._commands.glob("*.claim"):
                if _read(claim) == self.name:
                    claim.unlink(missing_ok=True)
        self._lease.release()
        with suppress(OSError):  # others are at work
            self._commands.rmdir()

    @property
    def is_held(self) -> bool:
        """Whether no other command has taken this one for dead."""
        return self._lease.is_locked and self._lease.compromise is None

    def check(self) -> None:
        """Raise ``ComparisonError`` if other commands have taken this one for dead, as while its machine slept."""
        if not self.is_held:
            raise ComparisonError(
                f"Other commands have taken over the runs of this one in `{self._folder}`, as it did not respond for"
                f" {_DURATION:.0f} s. Run it again to take part."
            )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Let no other command change the folder in the block."""
        try:
            self._lock.acquire(timeout=_PATIENCE)
        except Timeout:
            raise ComparisonError(
                f"The folder `{self._folder}` is locked by another command{_describe(self._lock)}. If that one does not"
                f" respond, end it, and delete `{self._folder / LOCK}`."
            ) from None
        except OSError as error:
            raise explain(error, self._folder / LOCK) from error
        try:
            yield
        finally:
            self._lock.release()

    def find_others(self) -> dict[str, str]:
        """Return the other commands at work by their names, with their machines and processes in words.

        A command that died on another machine a moment ago still counts: see :meth:`watch_others`.
        """
        names = [file.stem for file in self._commands.glob("*.lease")]
        return {name: _describe(self._others[name]) for name in names if name != self.name and self._is_alive(name)}

    def watch_others(self) -> dict[str, str]:
        """Return the other commands at work, once one of them has shown that it lives, or all are found dead."""
        first: dict[str, float] = {}
        while others := self.find_others():
            owners = [self._others[name].owner for name in others]
            if any(owner is not None and owner.hostname == socket.gethostname() for owner in owners):
                return others
            for name in others:
                with suppress(OSError):
                    changed = self._get_lease_file(name).stat().st_mtime
                    if changed != first.setdefault(name, changed):
                        return others
            time.sleep(_DURATION / 40)
        return others

    def clear(self) -> None:
        """Remove what dead commands have left, if no other one is at work."""
        for file in self._commands.iterdir():
            if file.stem != self.name:
                file.unlink(missing_ok=True)

    def claim(self, key: str) -> bool:
        """Claim something, and return whether no living command has."""
        with self.lock():
            owner = _read(self._get_claim_file(key))
            if owner and owner != self.name and self._is_alive(owner):
                return False
            write_atomically(self._get_claim_file(key), self.name)
            return True

    def release(self, key: str) -> None:
        """Release a claim of this command."""
        self._get_claim_file(key).unlink(missing_ok=True)

    def list_elsewhere(self) -> set[str]:
        """Return what other living commands have claimed."""
        owners = {file.stem: _read(file) for file in self._commands.glob("*.claim")}
        alive = {owner for owner in {*owners.values()} if owner and owner != self.name and self._is_alive(owner)}
        return {key for key, owner in owners.items() if owner in alive}

    def _is_alive(self, name: str) -> bool:
        """Return whether another command renews its lease; the lease of a dead one is removed."""
        file = self._get_lease_file(name)
        if not file.exists():
            return False
        lease = self._others.setdefault(name, _make_lease(file))  # keeps what was seen of it before
        try:
            lease.acquire(timeout=0)
        except Timeout:
            return True
        lease.release()
        return False

    def _get_lease_file(self, name: str) -> Path:
        return self._commands / f"{name}.lease"

    def _get_claim_file(self, key: str) -> Path:
        return self._commands / f"{key}.claim"


def _make_lease(file: Path) -> SoftFileLease:
    return SoftFileLease(file, lease_duration=_DURATION, heartbeat_interval=_DURATION / 4)


def _describe(lease: SoftFileLease) -> str:
    owner = lease.owner
    if owner is None:
        return ""
    return f" on the machine {owner.hostname} (process {owner.pid})"


def _read(file: Path) -> str:
    """Return the content of a file, empty if there is none."""
    with suppress(OSError):
        return file.read_text()
    return ""
