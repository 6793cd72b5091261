"""Which version and commit of this package makes a run."""

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
_GIT_TIMEOUT = 20.0  # for each command: a cold network drive is slow
# a hook of git sets these to the repository that it runs for
_GIT_VARIABLES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_PREFIX")


class Provenance(NamedTuple):
    """The code of this package that a run was made by.

    Attributes:
        version: Of the package.
        commit: Of the git checkout that holds the package, or that pip has built it from; ``None`` if it is not known.
        dirty: Whether files of the package differed from that commit, or were new; ``None`` if it is not known.

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
    """Return what this process runs: asked once, and early, as the files may change while it has the old ones."""
    commit, dirty = _ask_git(_FOLDER)
    return Provenance(lightning_znorm.__version__, commit or _ask_pip(_FOLDER), dirty)


def _ask_git(package: Path) -> tuple[str | None, bool | None]:
    """Return the commit of the repository that tracks the package, and whether files of the package differ from it."""
    try:
        # an ignored virtual environment lies in a repository that says nothing about what is installed there
        _run_git(package, "ls-files", "--error-unmatch", "--", "__init__.py")
        commit = _run_git(package, "rev-parse", "--verify", "HEAD").strip()
        changes = _run_git(package, "status", "--porcelain", "--untracked-files=normal", "--", ".")
    except (OSError, subprocess.SubprocessError):
        return None, None
    return commit, bool(changes)


def _run_git(folder: Path, *arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in _GIT_VARIABLES}
    # without a lock on the index, and without starting a daemon
    command = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-C", str(folder), *arguments]
    # a pipe would be waited for until all that git has started ends, too
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


def _ask_pip(package: Path) -> str | None:
    """Return the commit that pip has noted (PEP 610), if it is this package that it has installed."""
    with suppress(PackageNotFoundError, OSError, ValueError, KeyError, TypeError):
        installed = distribution("lightning-znorm")
        if Path(str(installed.locate_file(package.name))).resolve() == package:
            return str(json.loads(installed.read_text("direct_url.json") or "{}")["vcs_info"]["commit_id"])
    return None
