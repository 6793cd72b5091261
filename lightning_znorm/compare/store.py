"""The folder of a comparison: what has been done is kept, whatever happens."""

import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lightning_znorm.compare.plan import Run
from lightning_znorm.compare.text import listing

SCHEMA = 1
_ABOUT = "comparison.json"
_LOCK = ".lock"


class Store:
    """Results of a comparison in a folder.

    ``comparison.json`` tells what is compared, ``runs/<run>/result.json`` what came out of a run and
    ``runs/<run>/log.txt`` what it printed. Files are written elsewhere and moved into place, so that each is whole or
    not there.

    Args:
        folder: The folder, which is made if it is not there.

    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def opened(self, configuration: Mapping[str, Any]) -> Iterator["Store"]:
        """Take possession of the folder.

        Args:
            configuration: What is compared, as JSON takes it. The folder must belong to the same, or have no result.

        Raises:
            ValueError: If the folder cannot be written, belongs to something else or is in use.

        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / _LOCK)
            lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(
                f"Another comparison is at work in the folder `{self.folder}`. Wait for it, or choose another folder"
                " with `--compare.out`."
            ) from None
        except OSError as error:
            raise ValueError(
                f"Argument `out`: the folder `{self.folder}` cannot be written ({error.strerror}). Choose another one."
            ) from error
        try:
            if self.check(configuration):
                self._forget_trial()
            write_json(self.folder / _ABOUT, {"schema": SCHEMA, "configuration": configuration})
            yield self
        finally:
            lock.release()

    def check(self, configuration: Mapping[str, Any]) -> bool:
        """Raise if the folder belongs to something else; one that is not there or has no result yet is fine.

        Returns:
            Whether it was of another configuration, for instance one that failed in the trial.

        Raises:
            ValueError: Naming what is different.

        """
        about = self.folder / _ABOUT
        choose = "Choose another folder with `--compare.out`"
        if not self.folder.exists():
            return False
        if not self.folder.is_dir():
            raise ValueError(f"Argument `out`: `{self.folder}` is not a folder. {choose}.")
        if not about.exists():
            others = [path.name for path in self.folder.iterdir() if path.name != _LOCK and not _is_temporary(path)]
            if others:
                raise ValueError(
                    f"Argument `out`: the folder `{self.folder}` has other things in it ({listing(sorted(others), 5)})."
                    f" {choose}."
                )
            return False
        known = read_json(about)
        if not isinstance(known, dict) or known.get("schema") != SCHEMA:
            raise ValueError(
                f"Argument `out`: `{about}` is not of the form that this version reads (schema {SCHEMA}). {choose}."
            )
        # once through JSON, as what was stored went
        differing = differences(known["configuration"], json.loads(json.dumps(configuration, default=repr)))
        if differing and any(self.folder.glob("runs/*/result.json")):
            shown = "; ".join(f"{key} is {new!r}, was {old!r}" for key, old, new in differing[:5])
            raise ValueError(
                f"Argument `out`: the folder `{self.folder}` belongs to a comparison of another configuration"
                f" ({shown}). {choose}, or delete this one."
            )
        return bool(differing)

    @property
    def trial(self) -> Path:
        """Where the trial is remembered."""
        return self.folder / "trial.json"

    def _forget_trial(self) -> None:
        self.trial.unlink(missing_ok=True)
        shutil.rmtree(self.folder / "runs", ignore_errors=True)

    def folder_of(self, run: Run) -> Path:
        """Return where a run's files are."""
        return self.folder / "runs" / run.key

    def result_of(self, run: Run) -> dict[str, Any] | None:
        """Return a run's result, ``None`` if there is none yet."""
        path = self.folder_of(run) / "result.json"
        result = read_json(path) if path.exists() else None
        if not isinstance(result, dict) or result.get("schema") != SCHEMA:
            return None
        return result | {"setting": dict(run.setting)}  # a tuple or a class, say, which JSON does not give back

    def results(self, runs: Iterable[Run]) -> list[dict[str, Any]]:
        """Return the results that are there."""
        found = (self.result_of(run) for run in runs)
        return [result for result in found if result is not None]

    def keep(self, run: Run, result: Mapping[str, Any]) -> None:
        """Write a run's result."""
        write_json(self.folder_of(run) / "result.json", result)

    def clear(self, run: Run) -> None:
        """Remove what an interrupted run has left."""
        shutil.rmtree(self.folder_of(run), ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write a file that is either whole or not there; what is not a finite number becomes ``null``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(_without_nan(value), indent=1, default=repr) + "\n")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write to a temporary file beside it, and move it into place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_json(path: Path) -> Any:
    """Read a file, ``None`` if it is not JSON."""
    try:
        return json.loads(path.read_text())
    except ValueError:
        return None


def differences(old: Any, new: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    """List where two nested mappings differ, as dotted key, old value, new value.

    Example::

        >>> differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 3, "c": 2}})
        [('a.b', 1, 3)]

    """
    if isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys([*old, *new])
        return [
            found for name in keys for found in differences(old.get(name), new.get(name), f"{key}.{name}".lstrip("."))
        ]
    return [] if old == new else [(key, old, new)]


def _is_temporary(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(".tmp")


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
