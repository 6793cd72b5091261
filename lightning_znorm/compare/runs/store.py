"""The folder of a comparison, in which results are kept."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lightning_znorm.compare.files import is_temporary, read_json, replace_nonfinite, write_json
from lightning_znorm.compare.question.run import Run
from lightning_znorm.compare.runs.checkpoint import find_checkpoint, find_checkpoints
from lightning_znorm.compare.runs.lease import LOCK, Lease
from lightning_znorm.compare.runs.result import SCHEMA, RunResult
from lightning_znorm.errors import ArgumentValueError, ZNormError, join_names

_MANIFEST = "comparison.json"
_OLD_LOCK = ".lock"  # of earlier versions


class Store:
    """Results of a comparison in a folder, which is created if it does not exist.

    ``comparison.json`` contains the configuration, ``runs/<run>/result.json`` the result of a run and
    ``runs/<run>/log.txt`` its output.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()  # the module may change the working directory

    @contextmanager
    def open(self, configuration: Mapping[str, Any]) -> Iterator["Store"]:
        """Acquire the folder for a configuration; raise ``ValueError`` if it is in use or belongs to something else.

        If a ``ZNormError`` leaves the block before there is a result, the folder is restored.
        """
        existed = self.folder.exists()
        if self.folder.is_dir():
            self.check(configuration)  # before anything is written
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
                self._remove_trial()
            for temporary in filter(is_temporary, self.folder.iterdir()):
                temporary.unlink()
            kept = self._read_manifest() if self._has_work() else {}
            self._manifest = {
                "schema": SCHEMA,
                "configuration": _encode_nonfinite(configuration),
                "unstable": list(kept.get("unstable", [])),
                "threads": kept.get("threads"),
                "question": kept.get("question"),
                "about": kept.get("about"),
                "planned": kept.get("planned"),
            }
            self._write_manifest()
            with self._restore_after_refusal(is_new=not existed):
                yield self
        finally:
            self.lease.release()

    @contextmanager
    def _restore_after_refusal(self, is_new: bool) -> Iterator[None]:
        """Remove the files of a comparison without results if an error of this package leaves the block."""
        try:
            yield
        except ZNormError:
            if self.lease.is_held and not self._has_work():
                self._remove_trial()
                for name in (_MANIFEST, "config.yaml", LOCK):
                    (self.folder / name).unlink(missing_ok=True)
                if is_new:
                    with suppress(OSError):  # it may contain other files
                        self.folder.rmdir()
            raise

    def mark_unstable(self, parts: Iterable[str]) -> bool:
        """Note what runs depend on and other processes cannot recognize; return whether that is new."""
        before = self._manifest["unstable"]
        self._manifest["unstable"] = list(dict.fromkeys([*before, *parts]))
        self._write_manifest()
        return bool(before != self._manifest["unstable"])

    def fix_threads(self, threads: int) -> int:
        """Return the number of threads of each run: as many as its first runs had, as sums depend on it."""
        if self._manifest["threads"] is None:
            self._manifest["threads"] = threads
            self._write_manifest()
        return int(self._manifest["threads"])

    def write_question(self, question: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        """Note what is compared, and what a report says of it, for a report without the modules."""
        planned = self._manifest["planned"] or {name: question[name] for name in ("pairs", "width", "margin")}
        self._manifest |= {"question": question, "about": about, "planned": planned}
        self._write_manifest()

    def read_question(self) -> dict[str, Any]:
        """Return what is compared, empty if that is not known yet."""
        return self._read_manifest().get("question") or {}

    def read_planned(self) -> dict[str, Any]:
        """Return ``pairs``, ``width`` and ``margin`` as they were before the first run."""
        return self._read_manifest().get("planned") or {}

    def read_about(self) -> dict[str, Any]:
        """Return what a report says of the comparison."""
        return self._read_manifest().get("about") or {}

    def read_named_results(self) -> dict[str, Any]:
        """Return the content of the question's results by the names of their runs.

        The folder may have others of the same name: of another method with that label, or without a varied key.
        """
        question = self.read_question()
        identities, varied = question.get("identities", {}), question.get("varied")
        contents = [read_json(path) for path in self.folder.glob("runs/*/result.json")]
        return {
            content["name"]: content
            for content in contents
            if isinstance(content, dict) and "name" in content and content.get("varied") == varied
            if content.get("identity") == identities.get(content.get("method"), content.get("identity"))
        }

    def _write_manifest(self) -> None:
        write_json(self.folder / _MANIFEST, self._manifest)

    def _read_manifest(self) -> dict[str, Any]:
        path = self.folder / _MANIFEST
        manifest = read_json(path) if path.is_file() else None
        return manifest if isinstance(manifest, dict) else {}

    def _has_work(self) -> bool:
        """Return whether there are results or checkpoints."""
        runs = self.folder.glob("runs/*")
        return any((run / "result.json").exists() or find_checkpoints(run) for run in runs)

    def check(self, configuration: Mapping[str, Any]) -> bool:
        """Raise ``ValueError`` if the folder cannot be used; return whether it has a configuration to be replaced.

        That is one without results, such as one that failed in the trial.
        """
        path = self.folder / _MANIFEST
        remedy = "Choose another folder with `--compare.out`"
        if not self.folder.exists():
            return False
        if not self.folder.is_dir():
            raise ArgumentValueError(f"Argument `out`: `{self.folder}` is not a folder. {remedy}.")
        if not path.exists():
            others = [other.name for other in self.folder.iterdir() if not _is_leftover(other)]
            if others:
                raise ArgumentValueError(
                    f"Argument `out`: the folder `{self.folder}` is not empty and is not the folder of a comparison (it"
                    f" contains {join_names(sorted(others), 5)}). {remedy}."
                )
            return False
        manifest = self.check_schema()
        # through JSON, like the stored one
        current = json.loads(json.dumps(_encode_nonfinite(configuration), default=repr))
        differences = find_differences(manifest["configuration"], current)
        if not self._has_work():
            return bool(differences)
        if differences:
            readable = [entry for entry in differences if not entry[0].endswith(".digest")] or differences
            changes = "; ".join(f"{key} is {new!r}, was {old!r}" for key, old, new in readable[:5])
            raise ArgumentValueError(
                f"Argument `out`: the folder `{self.folder}` belongs to a comparison of another configuration"
                f" ({changes}). {remedy}, or delete this one."
            )
        if unstable := manifest.get("unstable"):
            raise ArgumentValueError(
                f"Argument `out`: the results in the folder `{self.folder}` cannot be used again. They depend on"
                f" objects that look different in every process ({join_names(unstable)}) and cannot be recognized."
                f" {remedy}, or delete this one."
            )
        return False

    def check_schema(self) -> dict[str, Any]:
        """Return the manifest; raise ``ValueError`` if this version cannot read it."""
        path = self.folder / _MANIFEST
        if not path.is_file():
            raise ArgumentValueError(f"`{self.folder}` is not the folder of a comparison: it has no `{_MANIFEST}`.")
        manifest = self._read_manifest()
        schema = manifest.get("schema")
        if schema != SCHEMA or "configuration" not in manifest:
            reason = "is damaged" if schema in (None, SCHEMA) else f"was written by another version (schema {schema})"
            raise ArgumentValueError(
                f"Argument `out`: `{path}` {reason}; this version reads schema {SCHEMA}. Choose another folder with"
                " `--compare.out`."
            )
        return manifest

    @property
    def trial_file(self) -> Path:
        """File with the results of trials."""
        return self.folder / "trial.json"

    def _remove_trial(self) -> None:
        self.trial_file.unlink(missing_ok=True)
        shutil.rmtree(self.folder / "runs", ignore_errors=True)

    def get_run_folder(self, run: Run) -> Path:
        """Return the folder of a run."""
        return self.folder / "runs" / run.key

    def read_result(self, run: Run) -> RunResult | None:
        """Return a run's result, ``None`` if there is none yet."""
        path = self.get_run_folder(run) / "result.json"
        return RunResult.from_json(run, read_json(path)) if path.is_file() else None

    def write_result(self, result: RunResult) -> None:
        """Write the result of a run."""
        write_json(self.get_run_folder(result.run) / "result.json", result.to_json())

    def clear(self, run: Run) -> None:
        """Remove the files of an interrupted run, unless it resumes from a checkpoint."""
        folder = self.get_run_folder(run)
        if find_checkpoint(folder).is_file():
            for file in (folder / "result.json", *filter(is_temporary, folder.iterdir())):
                file.unlink(missing_ok=True)
        elif folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder, ignore_errors=True)
        else:
            folder.unlink(missing_ok=True)


def _is_leftover(path: Path) -> bool:
    """Return whether a file only shows that a comparison was at work."""
    return path.name in (LOCK, _OLD_LOCK) or is_temporary(path)


def find_differences(old: Any, new: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    """List the differences of two nested mappings: dotted key, old value, new value.

    Example::

        >>> find_differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 3, "c": 2}})
        [('a.b', 1, 3)]

    """
    if isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys([*old, *new])
        return [
            difference
            for name in keys
            for difference in find_differences(old.get(name), new.get(name), f"{key}.{name}".lstrip("."))
        ]
    is_same = json.dumps(old, sort_keys=True) == json.dumps(new, sort_keys=True)  # 1 and 1.0 batches differ
    return [] if is_same else [(key, old, new)]


def _encode_nonfinite(configuration: Any) -> Any:
    """Replace inf and NaN by their text in YAML, which survives JSON."""
    return replace_nonfinite(configuration, lambda number: f".{number}")
