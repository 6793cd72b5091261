"""The command ``lightning-znorm compare``."""

import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lightning_znorm.cli.command import CommandParser
from lightning_znorm.cli.parser import make_cli_class, take_package
from lightning_znorm.compare.comparison import Comparison
from lightning_znorm.compare.configuration import (
    GROUP,
    check_configuration,
    check_keys,
    clean_configuration,
    find_modules,
    flatten,
    list_swept_values,
    write_configuration,
)
from lightning_znorm.compare.executors.choice import make_executor, start_engine
from lightning_znorm.compare.identity.values import identify_code
from lightning_znorm.compare.question.arguments import parse_question
from lightning_znorm.compare.question.directions import Mode
from lightning_znorm.compare.question.sweep import AUTO
from lightning_znorm.compare.report.pages import find_report_files, render_answer
from lightning_znorm.compare.runs.recipes import ConfiguredRecipe
from lightning_znorm.compare.runs.store import Store

_DESCRIPTION = """Train a LightningModule with several gradient transforms, select the best setting of each, confirm it
with fresh seeds, and test whether they differ. All options but the group `compare` are those of
`lightning-znorm fit`."""
_TRAINED = ("model.", "optimizer.", "data.")  # groups of the configuration with numbers to search


@dataclass
class CompareOptions:
    """What to compare, and how.

    Args:
        methods: Gradient transforms, separated by commas: none, clip, gc, scale, znorm, or the class path of a
            callback; with arguments in parentheses, as in "znorm(min_ndim=2,stop_step=500)".
        sweep: Values of any keys of the configuration: a list, as in "model.init_args.lr=1e-4,1e-3,1e-2"; a range that
            is searched, "model.init_args.lr=1e-5..1e-1"; "auto" for a search from the configured value, or "auto(1e-3)"
            from another one. The key "lr" stands for the learning rate, wherever it is. Values for each method are a
            mapping, as in "lr={none: 1e-4..1e-1, znorm: 1e-5..1e-2}". Several keys are separated by blanks, and all
            combinations are run. In a file, a mapping of keys to values. "auto" alone, the default, searches the
            learning rate if one key sets it; null sweeps nothing.
        confirm: Number of pairs of runs, with seeds that all methods share and the selection has not used, or a list of
            these seeds; 8 by default, or as many as the number of methods needs.
        trials: Number of values that a search tries for each method.
        width: Half the length of the interval of a difference, in units of the metric, from which the number of pairs
            follows instead of `confirm`: at least 12, at most 48.
        margin: The smallest difference that matters, in units of the metric. It allows the answer "equivalent", and the
            number of pairs that would decide.
        vary: A key that is set to the seed of each run, such as the seed of the split: "data.init_args.seed".
        monitor: Validation metric that selects each method's setting.
        mode: Whether low ("min") or high ("max") values of the monitor are better; inferred from its name by default.
        test_monitor: Test metric that is reported; by default the monitor's name with "test" for "val".
        baseline: Method that the others are compared with; by default "none", or else the first.
        jobs: Number of runs side by side; by default as many as the visible GPUs are enough for, or one per two CPU
            cores and device, and with an executor all that it takes.
        threads: Number of threads of each process; by default the CPU cores divided by the processes side by side, and
            with an executor 1.
        executor: Class path, with arguments, of a `concurrent.futures.Executor` that performs the runs, such as
            `lightning_znorm.compare.DaskExecutor`; by default, processes of this machine.
        out: Folder for results and report; the same command resumes an interrupted comparison, and shares the runs of
            one that is at work on another machine.
        retry: Whether to repeat runs that crashed.
        minutes: Stop after this many minutes, and start no run that is unlikely to end by then. Run the same command
            again to resume.
        dry_run: Only list the runs, try each method on a few batches, and estimate the time.

    """

    methods: str | list[str] = "none,clip,gc,znorm"
    sweep: str | dict[str, Any] | list[str] | None = AUTO
    confirm: int | list[int] | None = None
    trials: int = 9
    width: float | None = None
    margin: float | None = None
    vary: str | None = None
    monitor: str = "val_loss"
    mode: Mode | None = None
    test_monitor: str | None = None
    baseline: str | None = None
    jobs: int | None = None
    threads: int | None = None
    executor: futures.Executor | None = None
    out: str = "comparison"
    retry: bool = False
    minutes: float | None = None
    dry_run: bool = False


def run_command(args: Sequence[str]) -> None:
    """Run ``lightning-znorm compare`` with the arguments that follow the word ``compare``."""
    argv, sys.argv = sys.argv, sys.argv[:1]  # LightningCLI warns of arguments in it
    package, others = take_package(args)
    try:
        cli = make_parser(package)(
            args=others, run=False, parser_kwargs={"prog": "lightning-znorm compare", "description": _DESCRIPTION}
        )
    finally:
        sys.argv = argv
    options = cli.config[GROUP]
    configuration = clean_configuration(cli)
    check_configuration(configuration)
    names = ["methods", "sweep", "confirm", "trials", "width", "margin", "vary"]
    names += ["monitor", "mode", "test_monitor", "baseline"]
    configured = {key: value for key, value in flatten(configuration).items() if key.startswith(_TRAINED)}
    draft = parse_question(**{name: options[name] for name in names}, configured=configured)
    check_keys(cli.parser, configuration, draft)
    swept = [{"class_path": value} for _, values in list_swept_values(draft) for value in values]
    modules = find_modules([configuration, *swept])
    contents = configuration | {"code": identify_code(modules)}
    store = Store(Path(options.out))
    store.check(contents)

    def make_comparison(folder: Path, engine: Any) -> Comparison:
        config_file = folder / "config.yaml"
        recipe = ConfiguredRecipe(configuration, package, modules)
        executor = make_executor(engine, options.jobs, options.threads, configuration["trainer"], modules)
        prepare = partial(write_configuration, config_file, configuration)
        return Comparison(
            *(draft, recipe, store, executor, contents, options.retry, options.threads, options.minutes, prepare),
            about={
                "command": shlex.join(["lightning-znorm", "compare", *args]),
                "package": package,
                "model": _name_class(configuration.get("model")),
                "data": _name_class(configuration.get("data")),
            },
        )

    with start_engine(options.executor) as engine:
        if options.dry_run:
            with tempfile.TemporaryDirectory(prefix="lightning-znorm-") as temporary:
                print(make_comparison(Path(temporary), engine).preview())
            return
        outcome = make_comparison(store.folder, engine).run()
    if outcome.findings is not None and outcome.question is not None:
        print(render_answer(outcome.question, outcome.findings))
        print("\n" + "\n".join(str(path) for path in find_report_files(store.folder)))
    if outcome.missing_reason is not None:
        sys.exit(130)


def _name_class(configuration: Any) -> str:
    """Return the class path in a group of the configuration, empty if there is none."""
    return str(configuration.get("class_path", "")) if isinstance(configuration, Mapping) else ""


class CompareParser(CommandParser):
    """The parser of ``lightning-znorm compare``."""

    leading = (GROUP,)
    hidden = ("seed_everything", "ckpt_path", "weights_only")  # set by the comparison
    switches = (f"--{GROUP}.dry_run", f"--{GROUP}.retry")


def make_parser(package: str) -> Any:
    """Return the class that parses ``lightning-znorm compare`` for the modules of one Lightning package."""
    base = make_cli_class(package, fit_schema=True)

    class CompareCLI(base):  # type: ignore[misc, valid-type]
        """Parses the options of ``fit`` and the group ``compare``, and instantiates nothing."""

        _parser_mixin = CompareParser

        def add_core_arguments_to_parser(self, parser: Any) -> None:
            super().add_core_arguments_to_parser(parser)
            parser.add_class_arguments(CompareOptions, GROUP)
            for action in parser._actions:
                if f"--{action.dest}" in parser.switches:
                    action.metavar = "[true|false]"

        def parse_arguments(self, parser: Any, args: Any) -> None:
            super().parse_arguments(parser, args)
            self.config["seed_everything"] = False  # each run seeds itself

        def before_instantiate_classes(self) -> None:
            """Skip the warnings of ``fit``."""

        def instantiate_classes(self) -> None:
            """Leave this to each run."""

    return CompareCLI
