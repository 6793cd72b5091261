"""The folder of a comparison, in which results are kept."""

import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lightning_znorm.compare.files import as_json, is_temporary, read_json, write_json
from lightning_znorm.compare.question.run import Run
from lightning_znorm.compare.runs.checkpoint import find_checkpoint, find_checkpoints
from lightning_znorm.compare.runs.claims import COMMANDS, LOCK, Claims
from lightning_znorm.compare.runs.manifest import (
    MANIFEST,
    encode_nonfinite,
    find_differences,
    read_manifest,
    require_manifest,
)
from lightning_znorm.compare.runs.result import SCHEMA, RunResult
from lightning_znorm.errors import ArgumentValueError, ComparisonError, ZNormError, join_names

_OLD_LOCK = ".lock"  # of earlier versions


class Store:
    """Results of a comparison in a folder, which is created if it does not exist.

    ``comparison.json`` contains the configuration, ``runs/<run>/result.json`` the result of a run and
    ``runs/<run>/log.txt`` its output.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()  # the module may change the working directory

    @contextmanager
    def open(self, configuration: Mapping[str, Any], retry: bool = False) -> Iterator["Store"]:
        """Work in the folder for a configuration; raise ``ValueError`` if it belongs to something else.

        If a ``ZNormError`` leaves the block before there is a result, the folder is restored.

        Args:
            configuration: What all runs share.
            retry: Whether to forget the runs that crashed; not while other commands are at work, which may have
                repeated them.

        """
        existed = self.folder.exists()
        if self.folder.is_dir():
            self.check(configuration)  # before anything is written
        is_refused = False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.claims = Claims(self.folder)
            with self.claims.lock():
                try:
                    self._begin(configuration, retry)
                except BaseException:
                    self.claims.leave()
                    raise
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise ArgumentValueError(
                f"Argument `out`: the folder `{self.folder}` cannot be written ({reason}). Choose another one."
            ) from error
        try:
            yield self
        except ZNormError:
            is_refused = True
            raise
        finally:
            if is_refused and self.claims.is_held:
                with suppress(OSError):  # the disk may be full
                    self._restore()
            self.claims.leave()
            if is_refused and not existed:
                with suppress(OSError):  # it has files
                    self.folder.rmdir()

    def _begin(self, configuration: Mapping[str, Any], retry: bool) -> None:
        is_new = self.check(configuration)
        # a command that was killed before it wrote the manifest has left half a lease at most
        others = self.claims.find_others() if (self.folder / MANIFEST).is_file() else {}
        if others and (is_new or retry):
            print(f"The folder is in use{_join(others)}. Watching whether that command is alive …", file=sys.stderr)
            others = self.claims.watch_others()
        if others and is_new:
            raise ArgumentValueError(
                f"Argument `out`: a command with another configuration is at work in the folder `{self.folder}`"
                f"{_join(others)}. Wait for it, or choose another folder with `--compare.out`."
            )
        self.claims.join()
        if others:
            part = " Runs that crashed before are not repeated." if retry else ""
            print(f"Taking part in the comparison that is at work{_join(others)}.{part}", file=sys.stderr, flush=True)
            self._manifest = require_manifest(self.folder)
            return
        self.claims.clear()
        if is_new:
            self._remove_trial()
        for temporary in filter(is_temporary, self.folder.iterdir()):
            temporary.unlink()
        if retry:
            self._forget_crashes()
        kept = read_manifest(self.folder) if self._has_work() else {}
        self._manifest = {
            "schema": SCHEMA,
            "configuration": encode_nonfinite(configuration),
            "unstable": list(kept.get("unstable", [])),
            **{name: kept.get(name) for name in ("threads", "question", "asked_by", "about", "planned")},
        }
        write_json(self.folder / MANIFEST, self._manifest)

    def _forget_crashes(self) -> None:
        for path in self.folder.glob("runs/*/result.json"):
            content = read_json(path)
            if isinstance(content, dict) and content.get("status") == "crashed":
                path.unlink()

    def _restore(self) -> None:
        """Remove the files of a comparison without results, unless other commands are at work in it."""
        with self.claims.lock():
            if not (self.claims.find_others() or self._has_work()):
                self._remove_trial()
                for name in (MANIFEST, "config.yaml"):
                    (self.folder / name).unlink(missing_ok=True)

    @contextmanager
    def _edit_manifest(self) -> Iterator[dict[str, Any]]:
        """Yield the manifest as other commands have left it, to be changed."""
        with self.claims.lock():
            self._manifest = read_manifest(self.folder) or self._manifest
            yield self._manifest
            write_json(self.folder / MANIFEST, self._manifest)

    def mark_unstable(self, parts: Iterable[str]) -> bool:
        """Note what runs depend on and other processes cannot recognize; return whether that is new."""
        with self._edit_manifest() as manifest:
            before = manifest["unstable"]
            manifest["unstable"] = list(dict.fromkeys([*before, *parts]))
            return bool(before != manifest["unstable"])

    def fix_threads(self, threads: int) -> int:
        """Return the number of threads of each run: as many as its first runs had, as sums depend on it."""
        with self._edit_manifest() as manifest:
            manifest["threads"] = manifest["threads"] or threads
            return int(manifest["threads"])

    def write_question(self, question: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        """Note what is compared, and what a report says of it, for a report without the modules.

        Raises:
            ComparisonError: If another command at work in the folder compares something else.

        """
        question = as_json(question)  # like the stored one
        with self._edit_manifest() as manifest:
            differences = find_differences(manifest["question"] or {}, question)
            differences = [difference for difference in differences if difference[0] != "is_verified"]
            others = self.claims.find_others()
            asking = {name: others[name] for name in manifest["asked_by"] or [] if name in others}
            if asking and differences:
                changes = "; ".join(f"{key} is {new!r} here and {old!r} there" for key, old, new in differences[:5])
                raise ComparisonError(
                    f"Another command is at work in the folder `{self.folder}`{_join(asking)} with another question"
                    f" ({changes}). Wait for it, or choose another folder with `--compare.out`."
                )
            planned = manifest["planned"] or {name: question[name] for name in ("pairs", "width", "margin")}
            asked_by = [*asking, self.claims.name]
            manifest |= {"question": question, "asked_by": asked_by, "about": about, "planned": planned}

    def read_question(self) -> dict[str, Any]:
        """Return what is compared, empty if that is not known yet."""
        return read_manifest(self.folder).get("question") or {}

    def read_planned(self) -> dict[str, Any]:
        """Return ``pairs``, ``width`` and ``margin`` as they were before the first run."""
        return read_manifest(self.folder).get("planned") or {}

    def read_about(self) -> dict[str, Any]:
        """Return what a report says of the comparison."""
        return read_manifest(self.folder).get("about") or {}

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

    def _has_work(self) -> bool:
        """Return whether there are results or checkpoints."""
        runs = self.folder.glob("runs/*")
        return any((run / "result.json").exists() or find_checkpoints(run) for run in runs)

    def check(self, configuration: Mapping[str, Any]) -> bool:
        """Raise ``ValueError`` if the folder cannot be used; return whether it has a configuration to be replaced.

        That is one without results, such as one that failed in the trial.
        """
        path = self.folder / MANIFEST
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
        manifest = require_manifest(self.folder)
        # through JSON, like the stored one
        current = json.loads(json.dumps(encode_nonfinite(configuration), default=repr))
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
        with suppress(OSError):  # NFS shows files of other machines at once only where the folder is listed
            os.listdir(path.parent)
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


def _join(commands: Mapping[str, str]) -> str:
    """Return where commands are at work, in words."""
    return ",".join(commands.values())


def _is_leftover(path: Path) -> bool:
    """Return whether a file only shows that a comparison was at work."""
    return path.name in (LOCK, COMMANDS, _OLD_LOCK) or is_temporary(path)
