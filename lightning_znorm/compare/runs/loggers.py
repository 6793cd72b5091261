"""The user's loggers, told which run they belong to: method, setting and seed as name, group and tags."""

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from lightning_znorm._lightning import (
    find_classes,
    find_logged_hyperparameters,
    get_logger_arguments,
    get_rank,
    rank_zero_warn,
    set_logger_arguments,
)
from lightning_znorm.compare.files import read_json, write_json
from lightning_znorm.compare.question.run import Run
from lightning_znorm.compare.runs.checkpoint import find_checkpoint, keep_metrics

_FILE, _LOCK = "loggers.json", ".loggers.lock"
_MAX_TAG = 64  # characters that W&B takes
_ID_SIGNS = re.compile(r"[^\w.=-]+")  # that W&B may not take in an id
_MLFLOW_RUN_NAME = "mlflow.runName"


@dataclass(frozen=True)
class Identity:
    """What the loggers of a run are told.

    Attributes:
        name: Name of the run.
        group: Name that the runs of all seeds share.
        parameters: Method, setting, if any, and seed.
        folder: Folder of the run below the one that the logger shares with other runs.
        resumes: Whether the run goes on from a checkpoint.
        versions: Names that services gave to the run before it was interrupted, by the position of the logger.

    """

    name: str
    group: str
    parameters: Mapping[str, Any]
    folder: str
    resumes: bool = False
    versions: Sequence[str | None] = ()

    def find_version(self, position: int) -> str | None:
        """Return the name that the service of a logger gave to the run, ``None`` if it starts."""
        return self.versions[position] if position < len(self.versions) else None


def make_identity(run: Run, folder: Path) -> Identity:
    """Return the identity of a run whose folder is ``<comparison>/runs/<run>``."""
    setting = str(run.setting)
    parameters = {"method": run.method.label, "setting": setting, "seed": run.seed}
    resumes = find_checkpoint(folder).is_file()
    path = folder / _FILE
    return Identity(
        name=str(run),
        group=", ".join(filter(None, [run.method.label, setting])),
        parameters={name: value for name, value in parameters.items() if value != ""},
        folder=f"{folder.absolute().parents[1].name}/{run.key}",
        resumes=resumes,
        versions=(read_json(path) if resumes and path.is_file() else None) or (),
    )


def find_arguments(
    cls: type, given: Mapping[str, Any], identity: Identity, version: str | None = None
) -> dict[str, Any]:
    """Return the arguments of a logger that are those of a run: the user's own are kept, and added to.

    Once they are given, the same ones are found again.

    Args:
        cls: The class of the logger.
        given: The arguments so far.
        identity: The run.
        version: Name that the logger's service gave to the run before it was interrupted.

    Returns:
        Arguments to change, empty for a class that is not known.

    """
    if issubclass(cls, find_classes("loggers", "TensorBoardLogger", "CSVLogger")):
        number = given.get("version")
        return {"version": _append(f"version_{number}" if isinstance(number, int) else number, "/", identity.folder)}
    if issubclass(cls, find_classes("loggers", "WandbLogger")):
        return _find_wandb_arguments(given, identity, version)
    if issubclass(cls, find_classes("loggers", "MLFlowLogger")):
        tags = {name: str(value) for name, value in identity.parameters.items()} | dict(given.get("tags") or {})
        name = given.get("run_name") or tags.pop(_MLFLOW_RUN_NAME, None)
        return {"run_name": _append(name, ", ", identity.name), "tags": tags, "run_id": version}
    return {}


def _find_wandb_arguments(given: Mapping[str, Any], identity: Identity, version: str | None) -> dict[str, Any]:
    tags = given.get("tags") or os.environ.get("WANDB_TAGS", "").split(",")
    tags = [tags] if isinstance(tags, str) else tags
    own = [f"seed {value}" if name == "seed" else str(value) for name, value in identity.parameters.items()]
    number = given.get("version") or given.get("id") or os.environ.get("WANDB_RUN_ID")
    return {
        "name": _append(given.get("name") or os.environ.get("WANDB_NAME"), ", ", identity.name),
        "group": given.get("group") or os.environ.get("WANDB_RUN_GROUP") or identity.group,
        "tags": [*dict.fromkeys(tag for tag in (*tags, *(tag[:_MAX_TAG] for tag in own)) if tag)],
        "id": version or (_append(str(number), "-", _ID_SIGNS.sub("-", identity.folder)) if number else None),
        "version": None,  # another name of `id`
        "resume": given.get("resume") or ("allow" if version else None),
    }


def _append(value: str | None, separator: str, addition: str) -> str:
    if not value:
        return addition
    return value if value == addition or value.endswith(separator + addition) else f"{value}{separator}{addition}"


def identify_configuration(config: Any, cls: type, identity: Identity, position: int) -> Any:
    """Return the configuration of a logger with the arguments of a run, as far as it has them."""
    if not isinstance(config, Mapping):
        return config
    given = config.get("init_args") or {}
    found = find_arguments(cls, given, identity, identity.find_version(position))
    return {**config, "init_args": {**given, **{name: value for name, value in found.items() if name in given}}}


def identify_loggers(loggers: Sequence[Any], parts: Sequence[Any], identity: Identity, folder: Path) -> None:
    """Tell loggers which run they belong to, before they create anything.

    Args:
        loggers: The user's.
        parts: The module and its data, whose hyperparameters are logged, too.
        identity: The run.
        folder: Its folder, which keeps the names that services give to the run.

    """
    own = find_logged_hyperparameters(parts)
    versions: list[str | None] = []
    for position, logger in enumerate(loggers):
        found = find_arguments(type(logger), get_logger_arguments(logger), identity, identity.find_version(position))
        set_logger_arguments(logger, found)
        if identity.resumes and not get_rank() and isinstance(logger, find_classes("loggers", "CSVLogger")):
            keep_metrics(Path(logger.log_dir))
        try:
            # at once, as TensorBoard shows only the hyperparameters that come first
            logger.log_hyperparams({**identity.parameters, **own})
        except Exception as error:
            rank_zero_warn(f"`{type(logger).__name__}` was not told the method, setting and seed of the run: {error}")
        is_service = isinstance(logger, find_classes("loggers", "WandbLogger", "MLFlowLogger"))
        versions.append(logger.version if is_service else None)
    if any(versions) and not get_rank():
        write_json(folder / _FILE, versions)


def take_turns(classes: Sequence[type], folder: Path) -> AbstractContextManager[Any]:
    """Let the runs of a comparison create loggers one after another, if these may be of MLflow.

    MLflow fails where two processes create its tables, or an experiment, at once.
    """
    others = find_classes("loggers", "CSVLogger", "TensorBoardLogger", "WandbLogger")
    if get_rank() or all(issubclass(cls, others) for cls in classes):  # the loggers of other ranks create nothing
        return nullcontext()
    folder.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(folder.parent / _LOCK)


def close_loggers(loggers: Sequence[Any], failed: bool) -> None:
    """End the runs of W&B, which would lose what it has not written yet when the process of a run ends."""
    for logger in loggers:
        if isinstance(logger, find_classes("loggers", "WandbLogger")):
            try:
                logger.experiment.finish(exit_code=int(failed))
            except Exception as error:
                rank_zero_warn(f"The run of W&B did not end: {error}")
