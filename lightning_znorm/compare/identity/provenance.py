"""Version and commit of this package."""

import json
import os
import subprocess
import tempfile
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

import lightning_znorm

__all__ = ["Provenance", "find_provenance"]

_FOLDER = Path(lightning_znorm.__file__).resolve().parent
_GIT_TIMEOUT = 20.0  # seconds for each command: a network drive may be slow
# git sets these for its hooks, to the repository that they run for
_GIT_VARIABLES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_PREFIX")


class Provenance(NamedTuple):
    """The code of this package that made a run.

    Attributes:
        version: Version of the package.
        commit: Commit of the package's git checkout, or that pip built it from; ``None`` if unknown.
        dirty: Whether files of the package were new or differed from that commit; ``None`` if unknown.

    """

    version: str | None
    commit: str | None = None
    dirty: bool | None = None

    def __str__(self) -> str:
        version = self.version or "unknown version"
        changes = ", with uncommitted changes" if self.dirty else ""
        return version if self.commit is None else f"{version} (commit {self.commit[:12]}{changes})"


@lru_cache(maxsize=1)
def find_provenance() -> Provenance:
    """Return the code that this process runs; cached, as files may change later: call it early."""
    commit, dirty = _find_git_commit(_FOLDER)
    return Provenance(lightning_znorm.__version__, commit or _find_pip_commit(_FOLDER), dirty)


def _find_git_commit(package: Path) -> tuple[str | None, bool | None]:
    """Return the commit of the repository that tracks the package, and whether files of the package differ from it."""
    try:
        # fails in a virtual environment that the surrounding repository ignores
        _run_git(package, "ls-files", "--error-unmatch", "--", "__init__.py")
        commit = _run_git(package, "rev-parse", "--verify", "HEAD").strip()
        changes = _run_git(package, "status", "--porcelain", "--untracked-files=normal", "--", ".")
    except (OSError, subprocess.SubprocessError):
        return None, None
    return commit, bool(changes)


def _run_git(folder: Path, *arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in _GIT_VARIABLES}
    # locks no index and starts no daemon
    command = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-C", str(folder), *arguments]
    # a pipe would stay open as long as a process that git started
    with tempfile.TemporaryFile() as output:
        subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.DEVNULL,
            env=environment,
            timeout=_GIT_TIMEOUT,
            check=True,
        )
        output.seek(0)
        return output.read().decode(errors="replace")


def _find_pip_commit(package: Path) -> str | None:
    """Return the commit that pip recorded (PEP 610), if it installed this package."""
    with suppress(PackageNotFoundError, OSError, ValueError, KeyError, TypeError):
        installed = distribution("lightning-znorm")
        if Path(str(installed.locate_file(package.name))).resolve() == package:
            return str(json.loads(installed.read_text("direct_url.json") or "{}")["vcs_info"]["commit_id"])
    return None
