"""The configuration that all runs of ``lightning-znorm compare`` share, in a file of ``fit``."""

import re
from argparse import ArgumentError
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from lightning_znorm.cli.messages import shorten
from lightning_znorm.compare.files import write_atomically
from lightning_znorm.compare.question.candidates import Listed
from lightning_znorm.compare.question.draft import RATE, Draft
from lightning_znorm.compare.question.run import Run, Setting
from lightning_znorm.compare.runs.recipes import ConfiguredRecipe, check_trainer
from lightning_znorm.errors import ArgumentValueError, did_you_mean

GROUP = "compare"


def clean_configuration(cli: Any) -> dict[str, Any]:
    """Return the configuration that all runs share, for a file of ``fit``."""
    config = _make_paths_absolute(cli.config)
    dumped = yaml.safe_load(cli.parser.dump(config, skip_none=False, skip_link_targets=False))
    # each run has another seed, and `fit` does not know `GROUP`
    configuration = {name: value for name, value in dumped.items() if name not in ("config", GROUP, "seed_everything")}
    callbacks = configuration["trainer"].get("callbacks")
    if isinstance(callbacks, dict):
        configuration["trainer"]["callbacks"] = [callbacks]
    return configuration


def _make_paths_absolute(value: Any) -> Any:
    """Make paths independent of the user's file, as the configuration is written to another folder."""
    from jsonargparse import Namespace
    from jsonargparse.typing import Path as CheckedPath

    if isinstance(value, CheckedPath):
        return type(value)(value.absolute)
    if isinstance(value, Namespace):
        copied = value.clone()
        vars(copied).update({name: _make_paths_absolute(item) for name, item in vars(value).items()})
        return copied
    if isinstance(value, dict):
        return {name: _make_paths_absolute(item) for name, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return type(value)(_make_paths_absolute(item) for item in value)
    return value


def check_configuration(configuration: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` if a configuration contains what is to be compared, or what runs cannot share."""
    if configuration.get("znorm", {}).get("enabled"):
        raise ArgumentValueError(
            "The configuration already contains ZNorm (group `znorm`), so that every method would be run with it."
            " Remove it (or pass --no_znorm), and name it in `--compare.methods`."
        )
    check_trainer(configuration["trainer"])
    if configuration.get("ckpt_path"):
        raise ArgumentValueError(
            "The configuration resumes from a checkpoint (`ckpt_path`), but each run starts from the beginning. Remove"
            " it."
        )


def check_keys(parser: Any, configuration: Mapping[str, Any], draft: Draft) -> None:
    """Raise ``ValueError`` if the parser does not accept one of the settings or methods."""
    before = parser.exit_on_error, parser.allow_abbrev
    parser.exit_on_error = parser.allow_abbrev = False
    first = draft.list_first_runs()
    recipe = ConfiguredRecipe(configuration, "")
    try:
        for key, values in list_swept_values(draft):
            _refuse_key(key)
            for value in values:
                run = replace(first[0], setting=Setting(0, {key: value}), varied=None)
                _check_run(parser, recipe, run, f"`--compare.sweep {key}`", key)
        if (varied := first[0].varied) is not None:
            _refuse_key(varied, "vary", "varied")
            run = replace(first[0], setting=Setting(), varied=varied)
            _check_run(parser, recipe, run, f"`--compare.vary {varied}`", varied)
        for run in first:
            _check_run(parser, recipe, replace(run, varied=None), f"Method `{run.method.label}`")
    finally:
        parser.exit_on_error, parser.allow_abbrev = before


def list_swept_values(draft: Draft) -> list[tuple[str, list[Any]]]:
    """Return the keys of a sweep with listed values, or one of those that a search tries."""
    values: dict[str, list[Any]] = {key: [] for key in draft.sweep if draft.is_settled or key != RATE}
    if not draft.is_settled:
        values |= {key: [value] for key, value in draft.rates.items()}
        return list(values.items())
    for candidates in draft.question.design.candidates.values():
        settings = candidates.settings if isinstance(candidates, Listed) else [candidates.first]
        for setting in settings:
            for key, value in setting.values.items():
                if all(value is not other for other in values[key]):
                    values[key].append(value)
    return list(values.items())


def flatten(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a nested configuration by their dotted keys.

    Example::

        >>> flatten({"model": {"init_args": {"lr": 0.1}}})
        {'model.init_args.lr': 0.1}

    """
    return {key: value for key, value in _walk(configuration) if not isinstance(value, Mapping)}


def _refuse_key(key: str, option: str = "sweep", participle: str = "swept") -> None:
    devices = "all runs have the same devices"
    remedies = {
        "seed_everything": "give the seeds with `--compare.confirm`",
        "znorm": "`--compare.methods` takes ZNorm's arguments, as in none,znorm(eps=1e-8),znorm(eps=1e-4)",
        "ckpt_path": "each run starts from the beginning",
        GROUP: "it belongs to the comparison itself",
        "config": "all runs share one configuration",
        **dict.fromkeys(("trainer.devices", "trainer.num_nodes", "trainer.strategy"), devices),
    }
    for name, remedy in remedies.items():
        if f"{key}.".startswith(f"{name}."):
            raise ArgumentValueError(f"`--compare.{option} {key}`: this key cannot be {participle}: {remedy}.")


def _check_run(parser: Any, recipe: ConfiguredRecipe, run: Run, subject: str, key: str = "") -> None:
    try:
        parser.parse_args(recipe.make_flags(run))
    except ArgumentError as error:
        keys = [key for key, _ in _walk(recipe.configuration)]
        hint = _suggest_key(key, keys) if key else ""
        problem = shorten(str(error), parser)
        if hint:
            problem = problem.partition(" Did you mean")[0] + hint
        raise ArgumentValueError(f"{subject}: {problem}") from None


def _suggest_key(key: str, keys: Sequence[str]) -> str:
    """Return a hint at the key whose last part is nearest, else at the nearest one; none for a key that exists."""
    if key.replace(".init_args", "") in {known.replace(".init_args", "") for known in keys}:
        return ""
    by_last_part = {known.rpartition(".")[2]: known for known in reversed(keys)}
    nearest = get_close_matches(key.rpartition(".")[2], by_last_part, n=1)
    return f" Did you mean {by_last_part[nearest[0]]!r}?" if nearest else did_you_mean(key, keys)


def find_modules(configuration: Any) -> list[str]:
    """Return the Python modules of all class paths in a configuration."""
    modules, values = [], configuration
    if isinstance(configuration, Mapping):
        path, values = configuration.get("class_path"), list(configuration.values())
        if isinstance(path, str) and re.fullmatch(r"\w+(\.\w+)+", path):
            modules.append(path.rpartition(".")[0])
    if isinstance(values, list):
        modules += [name for value in values for name in find_modules(value)]
    return list(dict.fromkeys(modules))


def _walk(configuration: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys of a nested configuration with their values, groups before what is in them."""
    for name, value in configuration.items():
        yield prefix + name, value
        if isinstance(value, Mapping):
            yield from _walk(value, f"{prefix}{name}.")


def write_configuration(path: Path, configuration: Mapping[str, Any]) -> None:
    """Write a configuration file, and create its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, yaml.safe_dump(dict(configuration), sort_keys=False))
