"""Recipes for a run's Trainer, module and data: from a configuration file, or from functions."""

import contextlib
import inspect
import json
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import yaml

from lightning_znorm._lightning import find_classes, import_lightning
from lightning_znorm.cli.parser import make_cli_class, package_of
from lightning_znorm.compare.identity.values import describe
from lightning_znorm.compare.question.run import Run
from lightning_znorm.compare.runs.devices import check_devices, count_devices
from lightning_znorm.compare.runs.loggers import (
    Identity,
    identify_configuration,
    identify_loggers,
    make_identity,
    take_turns,
)
from lightning_znorm.errors import ArgumentValueError
from lightning_znorm.transform import GradientTransform

_TRIAL_BATCHES = {"limit_val_batches": 2, "limit_test_batches": 2}  # a callback limits training


@dataclass(frozen=True)
class Ingredients:
    """Trainer, module and data of a run."""

    trainer: Any
    model: Any
    datamodule: Any


class Recipe(Protocol):
    """Makes the ingredients of each run; sent to other processes by cloudpickle."""

    @property
    def trainer(self) -> Mapping[str, Any]:
        """Return the arguments of the Trainer that all runs share."""

    def make(self, run: Run, folder: Path, callbacks: Sequence[Any], is_trial: bool) -> Ingredients:
        """Seed everything, and make the ingredients of a run or its trial with additional callbacks."""

    def describe(self) -> dict[str, Any]:
        """Return what all runs share and processes may see differently, by value, for JSON."""


@dataclass(frozen=True)
class ConfiguredRecipe:
    """Makes runs from a configuration of ``fit``, which is sent along, as another machine may not see its file.

    Args:
        configuration: The configuration.
        package: ``lightning.pytorch`` or ``pytorch_lightning``.
        modules: Python modules of its class paths.

    """

    configuration: Mapping[str, Any]
    package: str
    modules: Sequence[str] = ()

    @property
    def trainer(self) -> Mapping[str, Any]:
        """Its group ``trainer``."""
        group: Mapping[str, Any] = self.configuration["trainer"]
        return group

    def make_flags(self, run: Run) -> list[str]:
        """Return the options of ``fit`` for a run."""
        setting = [make_flag(key, value) for key, value in run.values.items()]
        configuration = yaml.safe_dump(dict(self.configuration), sort_keys=False)
        return [f"--config={configuration}", f"--seed_everything={run.seed}", *setting, *run.method.make_flags()]

    def describe(self) -> dict[str, Any]:
        """Return nothing, as all processes have the same configuration."""
        return {}

    def make(self, run: Run, folder: Path, callbacks: Sequence[Any], is_trial: bool) -> Ingredients:
        """Parse and instantiate as ``fit`` does."""
        for module in self.modules:  # not by the parser, which works in the folder of the file
            with contextlib.suppress(Exception):  # the parser reports errors
                import_module(module)
        arguments = make_background_arguments(self.trainer, folder, is_trial)
        own = None if is_trial or "logger" in arguments else self.trainer.get("logger") or None
        identity = make_identity(run, folder) if own else None
        if arguments.pop("logger", None) is not None:
            logger = {"class_path": f"{self.package}.loggers.CSVLogger", "init_args": _make_logger_arguments(folder)}
            arguments["logger"] = logger
        elif identity is not None and not any(key.startswith("trainer.logger") for key in run.setting.values):
            arguments |= _identify_configurations(own, identity)
        flags = [make_flag(f"trainer.{name}", value) for name, value in arguments.items()]
        with take_turns(_find_classes_of(own or []), folder):
            cli = make_cli_class(self.package, fit_schema=True)(
                args=[*self.make_flags(run), *flags],
                run=False,
                save_config_callback=None,
                parser_kwargs={"exit_on_error": False},
                trainer_defaults={"callbacks": list(callbacks)},
            )
            redirect_loggers(cli.trainer, folder, is_trial)
            if identity is not None:
                identify_loggers(cli.trainer.loggers, [cli.model, cli.datamodule], identity, folder)
        return Ingredients(cli.trainer, cli.model, cli.datamodule)


def format_command(config_file: Path, package: str, run: Run, options: Mapping[str, Any]) -> str:
    """Return the command that repeats a run of a configuration alone, with further options of the group ``compare``."""
    sweep = {key: [_as_yaml(value)] for key, value in run.setting.values.items()}
    arguments = {"methods": [run.method.label], "confirm": [run.seed], "out": f"repeat/{run.key}"}
    arguments |= {"sweep": sweep or None} | ({"vary": run.varied} if run.varied else {})
    flags = ["--package=pytorch_lightning"] if package == "pytorch_lightning" else []
    flags += [make_flag(f"compare.{name}", value) for name, value in {**arguments, **options}.items()]
    return shlex.join(["lightning-znorm", "compare", f"--config={config_file}", *flags])


@dataclass(frozen=True)
class FactoryRecipe:
    """Makes runs from functions.

    Args:
        model_factory: Called with the swept values by name.
        datamodule: A LightningDataModule, a function that makes one, or ``None``.
        trainer: Arguments of the Trainer; a logger may be a function that makes it.

    """

    model_factory: Callable[..., Any]
    datamodule: Any
    trainer: Mapping[str, Any]

    def make(self, run: Run, folder: Path, callbacks: Sequence[Any], is_trial: bool) -> Ingredients:
        """Call the functions."""
        import_lightning("").seed_everything(run.seed, workers=True, verbose=False)
        model = self.model_factory(**select_known(self.model_factory, run))
        pl = import_module(package_of(type(model)))
        is_function = callable(self.datamodule) and not isinstance(self.datamodule, pl.LightningDataModule)
        varied = {run.varied: run.seed} if run.varied and has_parameter(self.datamodule, run.varied) else {}
        datamodule = self.datamodule(**varied) if is_function else self.datamodule
        arguments = make_background_arguments(self.trainer, folder, is_trial)
        own = None if is_trial or "logger" in arguments else self.trainer.get("logger") or None
        identity = make_identity(run, folder) if own else None
        configured = self.trainer.get("callbacks") or []
        configured = configured if isinstance(configured, Sequence) else [configured]
        arguments["callbacks"] = [*configured, *run.method.make_callbacks(), *callbacks]
        with take_turns(_find_classes_of(own or []), folder):
            if arguments.get("logger") is not None:
                arguments["logger"] = pl.loggers.CSVLogger(**_make_logger_arguments(folder))
            else:
                arguments["logger"] = _make_loggers(self.trainer.get("logger"))
            trainer = pl.Trainer(**{**self.trainer, **arguments})
            redirect_loggers(trainer, folder, is_trial)
            if identity is not None:
                identify_loggers(trainer.loggers, [model, datamodule], identity, folder)
        return Ingredients(trainer, model, datamodule)

    def describe(self) -> dict[str, Any]:
        """Return functions, data and arguments by value."""
        return {
            "model_factory": describe(self.model_factory),
            "datamodule": describe(self.datamodule),
            "trainer": {name: describe(value) for name, value in self.trainer.items()},
        }


def has_parameter(function: Any, name: str) -> bool:
    """Return whether a function has a parameter of a name, or takes any keyword."""
    if not callable(function):
        return False
    parameters = inspect.signature(function).parameters
    return name in parameters or any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())


def select_known(model_factory: Callable[..., Any], run: Run) -> dict[str, Any]:
    """Return the values of a run without a varied key that only the data have."""
    values = run.values
    if run.varied and not has_parameter(model_factory, run.varied):
        del values[run.varied]
    return values


def make_background_arguments(trainer: Mapping[str, Any], folder: Path, is_trial: bool) -> dict[str, Any]:
    """Return arguments to add to a Trainer in the background; ``logger`` is ``"csv"`` for a CSVLogger."""
    arguments: dict[str, Any] = {"default_root_dir": str(folder), "enable_model_summary": False}
    arguments["devices"] = count_devices(trainer)
    logger = trainer.get("logger")
    # a trial logs to no service
    if logger in (None, True) or (is_trial and logger is not False and not _logs_to_files(logger)):
        arguments["logger"] = "csv"
    if trainer.get("enable_checkpointing") is None and not _has_callback(trainer, "ModelCheckpoint"):
        arguments["enable_checkpointing"] = False
    if not _has_callback(trainer, "ProgressBar"):
        arguments["enable_progress_bar"] = False
    if is_trial:
        for name, batches in _TRIAL_BATCHES.items():
            limit = trainer.get(name)
            arguments[name] = min(batches, limit) if isinstance(limit, int) else batches
    return arguments


def redirect_loggers(trainer: Any, folder: Path, is_trial: bool) -> None:
    """Let the loggers of a trial write into its folder."""
    for logger in trainer.loggers if is_trial else ():
        for name in ("_root_dir", "_save_dir"):  # they have no public setter
            if hasattr(logger, name):
                setattr(logger, name, str(folder))


def _identify_configurations(loggers: Any, identity: Identity) -> dict[str, Any]:
    """Return the argument ``logger`` of a Trainer with the run's identity."""
    configs, classes = loggers if isinstance(loggers, list) else [loggers], _find_classes_of(loggers)
    pairs = enumerate(zip(configs, classes, strict=True))
    return {"logger": [identify_configuration(config, cls, identity, position) for position, (config, cls) in pairs]}


def _make_loggers(loggers: Any) -> Any:
    """Call the functions among a Trainer's loggers."""
    if isinstance(loggers, (list, tuple)):
        return [_make_loggers(logger) for logger in loggers]
    is_function = callable(loggers) and not isinstance(loggers, find_classes("loggers", "Logger"))
    return loggers() if is_function else loggers


def _logs_to_files(loggers: Any) -> bool:
    """Return whether loggers, or their configurations, write to files only."""
    classes = find_classes("loggers", "CSVLogger", "TensorBoardLogger")
    return all(issubclass(cls, classes) for cls in _find_classes_of(loggers))


def _find_classes_of(values: Any) -> list[type]:
    """Return the classes of one or several objects, or of their configurations."""
    classes = []
    for value in values if isinstance(values, (list, tuple)) else [values]:
        if isinstance(value, Mapping):
            module, _, name = value["class_path"].rpartition(".")
            classes.append(getattr(import_module(module), name))
        else:
            classes.append(type(value))
    return classes


def make_flag(key: str, value: Any) -> str:
    """Return an option of the command line."""
    value = _as_yaml(value)
    return f"--{key}={value if isinstance(value, str) else json.dumps(value)}"


def _as_yaml(value: Any) -> Any:
    """Return inf and NaN in YAML, as JSON has none, and other values unchanged."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value).replace("inf", ".inf").replace("nan", ".nan")
    return value


def _make_logger_arguments(folder: Path) -> dict[str, str]:
    return {"save_dir": str(folder), "name": "", "version": ""}


def _has_callback(trainer: Mapping[str, Any], name: str) -> bool:
    """Return whether a callback is of one of Lightning's classes."""
    return any(issubclass(cls, find_classes("callbacks", name)) for cls in find_callback_classes(trainer))


def find_callback_classes(trainer: Mapping[str, Any]) -> list[type]:
    """Return the classes of the callbacks, or their configurations, among a Trainer's arguments."""
    return _find_classes_of(trainer.get("callbacks") or [])


def check_trainer(trainer: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` if a Trainer's arguments contain what is to be compared, or what runs cannot share."""
    for cls in find_callback_classes(trainer):
        if issubclass(cls, GradientTransform):
            raise ArgumentValueError(
                f"The Trainer's arguments already contain {cls.__name__} (`trainer.callbacks`), so that every method"
                " would be run with it. Remove it, and name it in `methods`."
            )
    loggers = trainer.get("logger")
    for logger in loggers if isinstance(loggers, (list, tuple)) else [loggers]:
        if isinstance(logger, find_classes("loggers", "WandbLogger")):
            raise ArgumentValueError(
                "The Trainer's arguments contain a WandbLogger (`trainer.logger`), which begins its run in W&B as soon"
                " as it is sent to another process, so that all runs would write into one. Pass a function that makes"
                " it: `lambda: WandbLogger(…)`."
            )
    clip = trainer.get("gradient_clip_val")
    if clip:
        raise ArgumentValueError(
            f"The Trainer's arguments already clip gradients (`trainer.gradient_clip_val: {clip}`), so that every"
            f" method would be run with it. Remove it, and compare with the method `clip(max_norm={clip})`."
        )
    for split, step in (("val", "Settings are selected"), ("test", "Results are reported")):
        if trainer.get(f"limit_{split}_batches") == 0:
            raise ArgumentValueError(
                f"The Trainer's arguments leave no batch of the {split} split (`trainer.limit_{split}_batches: 0`)."
                f" {step} by its metrics: remove the limit."
            )
    check_devices(trainer)
