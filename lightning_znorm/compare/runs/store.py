"""The folder of a comparison: what has been done is kept, whatever happens."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lightning_znorm.compare.files import is_temporary, read_json, replace_nonfinite, write_json
from lightning_znorm.compare.question.plan import Run
from lightning_znorm.compare.runs.checkpoint import find_checkpoint
from lightning_znorm.compare.runs.lease import LOCK, Lease
from lightning_znorm.compare.runs.result import SCHEMA, RunResult
from lightning_znorm.errors import ArgumentValueError, ZNormError, listing

_ABOUT = "comparison.json"


class Store:
    """Results of a comparison in a folder.

    ``comparison.json`` tells what is compared, ``runs/<run>/result.json`` what came out of a run and
    ``runs/<run>/log.txt`` what it printed. Files are written elsewhere and moved into place, so that each is whole or
    not there.

    Args:
        folder: The folder, which is made if it does not exist.

    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()  # the module that is trained may change the working directory

    @contextmanager
    def open(self, configuration: Mapping[str, Any]) -> Iterator["Store"]:
        """Take possession of the folder.

        Args:
            configuration: What is compared, as JSON takes it. The folder must belong to the same, or have no result.

        Raises:
            ValueError: If the folder cannot be written, belongs to something else or is in use. A folder that has no
                result when a ``ZNormError`` leaves the block, because the question was wrong, is left as it was found.

        """
        existed = self.folder.exists()
        if self.folder.is_dir():
            self.check(configuration)  # before anything is written into a folder of somebody else's
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lease = Lease(self.folder)
            self.lease.acquire()
        except OSError as error:
            raise ArgumentValueError(
                f"Argument `out`: the folder `{self.folder}` cannot be written ({error.strerror}). Choose another one."
            ) from error
        try:
            if self.check(configuration):
                self._forget_trial()
            for temporary in filter(is_temporary, self.folder.iterdir()):  # of a process that was killed
                temporary.unlink()
            self._configuration, self._unstable = configuration, self._read_unstable()
            self._write_about()
            with self._removed_if_refused(with_folder=not existed):
                yield self
        finally:
            self.lease.release()

    @contextmanager
    def _removed_if_refused(self, with_folder: bool) -> Iterator[None]:
        """Remove what a comparison without results has written if an error of this package leaves the block."""
        try:
            yield
        except ZNormError:
            if self.lease.is_held and not self._has_results():
                self._forget_trial()
                for name in (_ABOUT, "config.yaml", LOCK):
                    (self.folder / name).unlink(missing_ok=True)
                if with_folder:
                    with suppress(OSError):  # something else is in it
                        self.folder.rmdir()
            raise

    def mark_unstable(self, parts: Iterable[str]) -> bool:
        """Note that the runs depend on what other processes do not recognize: the results cannot be used again.

        Returns:
            Whether that is new.

        """
        before, self._unstable = self._unstable, list(dict.fromkeys([*self._unstable, *parts]))
        self._write_about()
        return before != self._unstable

    def _write_about(self) -> None:
        about = {"schema": SCHEMA, "configuration": _encode(self._configuration), "unstable": self._unstable}
        write_json(self.folder / _ABOUT, about)

    def _read_unstable(self) -> list[str]:
        about = self.folder / _ABOUT
        return list((read_json(about) if about.exists() else {}).get("unstable", [])) if self._has_results() else []

    def _has_results(self) -> bool:
        return any(self.folder.glob("runs/*/result.json"))

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
            raise ArgumentValueError(f"Argument `out`: `{self.folder}` is not a folder. {choose}.")
        if not about.exists():
            others = [path.name for path in self.folder.iterdir() if not _is_possession(path)]
            if others:
                raise ArgumentValueError(
                    f"Argument `out`: the folder `{self.folder}` is not empty and is not the folder of a comparison (it"
                    f" contains {listing(sorted(others), 5)}). {choose}."
                )
            return False
        known = read_json(about)
        if not isinstance(known, dict) or known.get("schema") != SCHEMA or "configuration" not in known:
            schema = known.get("schema") if isinstance(known, dict) else None
            raise ArgumentValueError(
                f"Argument `out`: `{about}` was written by an incompatible version, or is damaged (schema {schema};"
                f" this version reads schema {SCHEMA}). {choose}."
            )
        # once through JSON, as what was stored went
        differing = find_differences(
            known["configuration"], json.loads(json.dumps(_encode(configuration), default=repr))
        )
        if not self._has_results():
            return bool(differing)
        if differing:
            telling = [entry for entry in differing if not entry[0].endswith(".digest")] or differing
            shown = "; ".join(f"{key} is {new!r}, was {old!r}" for key, old, new in telling[:5])
            raise ArgumentValueError(
                f"Argument `out`: the folder `{self.folder}` belongs to a comparison of another configuration"
                f" ({shown}). {choose}, or delete this one."
            )
        if unstable := known.get("unstable"):
            raise ArgumentValueError(
                f"Argument `out`: the results in the folder `{self.folder}` cannot be used again. They depend on"
                f" objects that look different in every process ({listing(unstable)}), so that nobody can tell whether"
                f" these are still the same. {choose}, or delete this one."
            )
        return False

    @property
    def trial_file(self) -> Path:
        """Where the trial is remembered."""
        return self.folder / "trial.json"

    def _forget_trial(self) -> None:
        self.trial_file.unlink(missing_ok=True)
        shutil.rmtree(self.folder / "runs", ignore_errors=True)

    def run_folder(self, run: Run) -> Path:
        """Return where a run's files are."""
        return self.folder / "runs" / run.key

    def read_result(self, run: Run) -> RunResult | None:
        """Return a run's result, ``None`` if there is none yet."""
        path = self.run_folder(run) / "result.json"
        return RunResult.from_json(run, read_json(path)) if path.is_file() else None

    def read_results(self, runs: Iterable[Run]) -> list[RunResult]:
        """Return the existing results."""
        results = (self.read_result(run) for run in runs)
        return [result for result in results if result is not None]

    def write_result(self, result: RunResult) -> None:
        """Write the result of a run that has not written it itself."""
        write_json(self.run_folder(result.run) / "result.json", result.to_json())

    def clear(self, run: Run) -> None:
        """Remove what an interrupted run has left, unless it goes on from a checkpoint."""
        folder = self.run_folder(run)
        if find_checkpoint(folder).is_file():
            (folder / "result.json").unlink(missing_ok=True)
        elif folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder, ignore_errors=True)
        else:
            folder.unlink(missing_ok=True)


def find_differences(old: Any, new: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    """List where two nested mappings differ, as dotted key, old value, new value.

    Example::

        >>> find_differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 3, "c": 2}})
        [('a.b', 1, 3)]

    """
    if isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys([*old, *new])
        return [
            found
            for name in keys
            for found in find_differences(old.get(name), new.get(name), f"{key}.{name}".lstrip("."))
        ]
    is_same = json.dumps(old, sort_keys=True) == json.dumps(new, sort_keys=True)  # 1 batch is not the share 1.0
    return [] if is_same else [(key, old, new)]


def _is_possession(path: Path) -> bool:
    """Say whether a file only shows that a comparison is, or was, at work in the folder."""
    return path.name == LOCK or is_temporary(path)


def _encode(configuration: Any) -> Any:
    """Write what is not a finite number as YAML does, so that JSON gives back the same."""
    return replace_nonfinite(configuration, lambda number: f".{number}")
