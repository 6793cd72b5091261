"""The command ``lightning-znorm compare``."""

import re
import sys
import tempfile
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from lightning_znorm.cli.command import CommandParser
from lightning_znorm.cli.messages import shorten
from lightning_znorm.cli.parser import choose_package, make_cli_class
from lightning_znorm.compare.comparison import Comparison, report_paths
from lightning_znorm.compare.executors.processes import ProcessExecutor
from lightning_znorm.compare.executors.slots import make_slots
from lightning_znorm.compare.files import write_atomically
from lightning_znorm.compare.identity.values import identify_code
from lightning_znorm.compare.question.plan import Run, Setting
from lightning_znorm.compare.question.question import Mode, Question, ask
from lightning_znorm.compare.report.pages import answer
from lightning_znorm.compare.runs.recipes import ConfiguredRecipe, refuse_trainer
from lightning_znorm.compare.runs.store import Store
from lightning_znorm.errors import ArgumentValueError, did_you_mean

_GROUP = "compare"
_DESCRIPTION = """Train a LightningModule with several gradient transforms, each at its own best setting, over several
seeds, and say whether they differ. Everything but the group `compare` is as for `lightning-znorm fit`."""


class CompareOptions:
    """What is compared, and how.

    Args:
        methods: Ways to treat the gradient, separated by commas: none, clip, gc, znorm, or the class path of a
            callback; each with arguments if need be, as in "znorm(min_ndim=2,stop_step=500)".
        sweep: Settings that every method is run with, as in "model.init_args.lr=1e-4,1e-3,1e-2"; any key of the
            configuration, several of them separated by blanks (all combinations are run). In a file, a mapping of keys
            to lists.
        seeds: Number of seeds, or a list of them. Five or more are needed to see small differences.
        monitor: Metric that the module logs in its validation; each method's setting is selected by it.
        mode: Whether a small ("min") or a large ("max") value of it is good; inferred from its name by default.
        test_monitor: Metric that the module logs in its test, which is reported; the monitor with "test" for "val" by
            default.
        baseline: Method from which the differences are taken; "none" by default.
        jobs: Number of runs side by side, spread over the visible GPUs; by default one per GPU, or one for every two
            cores.
        out: Folder for results and report. The same command goes on where it was interrupted.
        retry: Run again what has crashed.
        minutes: Stop after so many minutes, and start no run that is not likely to end by then; the same command goes
            on.
        dry_run: Only list the runs, try each method on a few batches, and estimate the time.

    """

    def __init__(
        self,
        methods: str | list[str] = "none,clip,gc,znorm",
        sweep: str | dict[str, Any] | list[str] | None = None,
        seeds: int | list[int] = 3,
        monitor: str = "val_loss",
        mode: Mode | None = None,
        test_monitor: str | None = None,
        baseline: str | None = None,
        jobs: int | None = None,
        out: str = "comparison",
        retry: bool = False,
        minutes: float | None = None,
        dry_run: bool = False,
    ) -> None:
        vars(self).update({name: value for name, value in locals().items() if name != "self"})


def run_command(args: Sequence[str]) -> None:
    """Run ``lightning-znorm compare``.

    Args:
        args: What follows the word ``compare``.

    Raises:
        ValueError: If an argument is wrong.

    """
    argv, sys.argv = sys.argv, sys.argv[:1]  # LightningCLI warns of what it finds there
    package = choose_package(args)
    try:
        cli = _make_parser(package)(
            args=list(args), run=False, parser_kwargs={"prog": "lightning-znorm compare", "description": _DESCRIPTION}
        )
    finally:
        sys.argv = argv
    options = cli.config[_GROUP]
    question = ask(
        options.methods,
        options.sweep,
        options.seeds,
        options.monitor,
        options.mode,
        options.test_monitor,
        options.baseline,
    )
    configuration = clean_configuration(cli)
    refuse_configuration(configuration)
    check_keys(cli.parser, configuration, question)
    trainer = configuration["trainer"]
    swept = [{"class_path": value} for values in question.sweep.values() for value in values]
    modules = find_modules([configuration, *swept])
    contents = configuration | {"code": identify_code(modules)}
    executor = ProcessExecutor(make_slots(options.jobs, str(trainer.get("accelerator"))), preload=modules)
    store = Store(Path(options.out))
    folder = store.folder
    store.check(contents)

    def compare_in(place: Path) -> Comparison:
        config_file = place / "config.yaml"
        recipe = ConfiguredRecipe(config_file, trainer, package, modules)
        prepare = partial(_write_configuration, config_file, configuration)
        return Comparison(question, recipe, store, executor, contents, trainer, options.retry, options.minutes, prepare)

    if options.dry_run:
        with tempfile.TemporaryDirectory(prefix="lightning-znorm-") as temporary:
            print(compare_in(Path(temporary)).preview())
        return
    outcome = compare_in(folder).run()
    if outcome.findings is not None:
        print(answer(question, outcome.findings))
        print("\n" + "\n".join(str(path) for path in report_paths(folder)))
    if outcome.gap is not None:
        sys.exit(130)


class CompareParser(CommandParser):
    """The parser of ``lightning-znorm compare``."""

    leading = (_GROUP,)
    hidden = ("seed_everything", "ckpt_path", "weights_only")  # a run has these from the comparison
    switches = (f"--{_GROUP}.dry_run", f"--{_GROUP}.retry")


def _make_parser(package: str) -> Any:
    base = make_cli_class(package, fit_schema=True)

    class CompareCLI(base):  # type: ignore[misc, valid-type]
        """Parses what ``fit`` takes and the group ``compare``, and makes nothing of it."""

        _parser_mixin = CompareParser

        def add_core_arguments_to_parser(self, parser: Any) -> None:
            super().add_core_arguments_to_parser(parser)
            parser.add_class_arguments(CompareOptions, _GROUP)
            for action in parser._actions:
                if f"--{action.dest}" in parser.switches:
                    action.metavar = "[true|false]"

        def parse_arguments(self, parser: Any, args: Any) -> None:
            super().parse_arguments(parser, args)
            self.config["seed_everything"] = False  # each run seeds itself

        def before_instantiate_classes(self) -> None:
            """There is nothing to warn of."""

        def instantiate_classes(self) -> None:
            """Each run does."""

    return CompareCLI


def clean_configuration(cli: Any) -> dict[str, Any]:
    """Return what all runs have in common, as a configuration file of ``fit`` has it."""
    config = _with_absolute_paths(cli.config)
    dumped = yaml.safe_load(cli.parser.dump(config, skip_none=False, skip_link_targets=False))
    # not ours to say: the seed is each run's own, and `_GROUP` is no part of `fit`
    configuration = {name: value for name, value in dumped.items() if name not in ("config", _GROUP, "seed_everything")}
    callbacks = configuration["trainer"].get("callbacks")
    if isinstance(callbacks, dict):
        configuration["trainer"]["callbacks"] = [callbacks]
    return configuration


def _with_absolute_paths(value: Any) -> Any:
    """Make paths that are relative to the user's file independent of it, as the configuration moves elsewhere."""
    from jsonargparse import Namespace
    from jsonargparse.typing import Path as CheckedPath

    if isinstance(value, CheckedPath):
        return type(value)(value.absolute)
    if isinstance(value, Namespace):
        copied = value.clone()
        vars(copied).update({name: _with_absolute_paths(item) for name, item in vars(value).items()})
        return copied
    if isinstance(value, dict):
        return {name: _with_absolute_paths(item) for name, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return type(value)(_with_absolute_paths(item) for item in value)
    return value


def refuse_configuration(configuration: Mapping[str, Any]) -> None:
    """Raise if a configuration has in it what is to be compared, or what the runs cannot share.

    Raises:
        ValueError: Naming the key and the remedy.

    """
    if configuration.get("znorm", {}).get("enabled"):
        raise ArgumentValueError(
            "The configuration already contains ZNorm (group `znorm`), so that every method would be run with it. Take"
            " it out (or give --no_znorm); `--compare.methods` says which method has it."
        )
    refuse_trainer(configuration["trainer"])
    if configuration.get("ckpt_path"):
        raise ArgumentValueError(
            "The configuration resumes from a checkpoint (`ckpt_path`), but each run starts from the beginning. Take"
            " it out."
        )


def check_keys(parser: Any, configuration: Mapping[str, Any], question: Question) -> None:
    """Raise if the parser does not take one of the settings or methods.

    Raises:
        ValueError: Naming the key or the method, and what is wrong.

    """
    before = parser.exit_on_error, parser.allow_abbrev
    parser.exit_on_error = parser.allow_abbrev = False
    method, setting, seed = question.methods[0], question.settings[0], question.seeds[0]
    with tempfile.TemporaryDirectory(prefix="lightning-znorm-") as folder:
        config_file = Path(folder) / "config.yaml"
        _write_configuration(config_file, configuration)
        recipe = ConfiguredRecipe(config_file, configuration["trainer"], "")
        try:
            for key, values in question.sweep.items():
                _refuse_key(key)
                for value in values:
                    _check(parser, recipe, Run(method, Setting(0, {key: value}), seed), f"`--compare.sweep {key}`", key)
            for method in question.methods:
                _check(parser, recipe, Run(method, setting, seed), f"Method `{method.label}`")
        finally:
            parser.exit_on_error, parser.allow_abbrev = before


def _refuse_key(key: str) -> None:
    group = key.partition(".")[0]
    remedies = {
        "seed_everything": "`--compare.seeds` says which seeds there are",
        "znorm": "`--compare.methods` takes ZNorm's arguments, as in none,znorm(eps=1e-8),znorm(eps=1e-4)",
        "ckpt_path": "each run starts from the beginning",
        _GROUP: "the comparison itself cannot be swept",
        "config": "all runs share one configuration",
    }
    if group in remedies:
        raise ArgumentValueError(f"`--compare.sweep {key}`: this key cannot be swept: {remedies[group]}.")


def _check(parser: Any, recipe: ConfiguredRecipe, run: Run, what: str, key: str = "") -> None:
    try:
        parser.parse_args(recipe.flags(run))
    except ArgumentError as error:
        known = _dotted(yaml.safe_load(recipe.config_file.read_text()))
        hint = did_you_mean(key, known) if key and not _is_known(key, known) else ""
        problem = shorten(str(error), parser)
        raise ArgumentValueError(
            f"{what}: {problem.partition(' Did you mean')[0] + hint if hint else problem}"
        ) from None


def _is_known(key: str, known: Sequence[str]) -> bool:
    """Say whether a key exists, also in its short form: `model.lr` for `model.init_args.lr`."""
    group, _, rest = key.partition(".")
    return key in known or any(name.startswith(f"{group}.") and name.endswith(f".{rest}") for name in known)


def find_modules(configuration: Any) -> list[str]:
    """Return the Python modules of all class paths in a configuration."""
    found: dict[str, None] = {}
    if isinstance(configuration, Mapping):
        path = configuration.get("class_path")
        if isinstance(path, str) and re.fullmatch(r"\w+(\.\w+)+", path):
            found[path.rpartition(".")[0]] = None
        found |= dict.fromkeys(name for value in configuration.values() for name in find_modules(value))
    elif isinstance(configuration, list):
        found |= dict.fromkeys(name for value in configuration for name in find_modules(value))
    return list(found)


def _dotted(configuration: Mapping[str, Any], prefix: str = "") -> list[str]:
    keys = []
    for name, value in configuration.items():
        keys.append(prefix + name)
        if isinstance(value, Mapping):
            keys += _dotted(value, f"{prefix}{name}.")
    return keys


def _write_configuration(path: Path, configuration: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, yaml.safe_dump(dict(configuration), sort_keys=False))
