"""The command ``lightning-znorm``: fit, validate, test, predict, compare, report, doctor.

``python -m lightning_znorm`` is the same command.

Importing Lightning takes seconds, so this module imports it only for commands that need it.
"""

import os
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from lightning_znorm import __version__
from lightning_znorm.errors import did_you_mean, fail, user_message
from lightning_znorm.fork_server import start_early

_COMMANDS = {
    "fit": "train a LightningModule; --znorm switches z-score gradient normalization on",
    "validate": "evaluate it on the validation split",
    "test": "evaluate it on the test split",
    "predict": "write its predictions",
    "compare": "does ZNorm help? Train with several gradient transforms, settings and seeds, and report",
    "report": "make the report of a comparison anew from its folder, or an overview of several",
    "doctor": "print devices, versions, and whether the gradients of each device are transformed right",
}
_EPILOG = """`lightning-znorm COMMAND --help` lists the options of a command. Models and data are given by class path;
modules in the working directory are found, too:

  lightning-znorm fit --model my_module.MyModel --data my_module.MyData --znorm
  lightning-znorm compare --config my_config.yaml --compare.monitor val_acc"""


def main(args: Sequence[str] | None = None) -> None:
    """Run ``lightning-znorm``.

    Class paths may name modules in the working directory. Errors of the parser and those that this package raises on
    purpose (a wrong argument, an unsupported configuration, a missing extra) are printed in a few lines, with exit
    status 2; any other error keeps its traceback. Characters that the terminal cannot encode are printed as ``?``.

    Args:
        args: Command-line arguments, ``sys.argv[1:]`` by default.

    """
    tokens = sys.argv[1:] if args is None else list(args)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    position = _find_command(tokens)
    options = tokens[:position]
    if {"-h", "--help"} & {*options}:
        _make_parser().print_help()
    elif "--version" in options:
        print(f"lightning-znorm {__version__} ({', '.join(_list_versions())})")
    elif position is None and not any(token.startswith(("-c", "--config")) for token in tokens):
        fail(f"A command is missing: {', '.join(_COMMANDS)}. See `lightning-znorm --help`.")
    elif position is not None and tokens[position] not in _COMMANDS:
        hint = did_you_mean(tokens[position], list(_COMMANDS))
        fail(f"Unknown command {tokens[position]!r}.{hint} The commands are {', '.join(_COMMANDS)}.")
    elif position is not None and tokens[position] in ("compare", "report", "doctor"):
        _run(tokens[position], [*options, *tokens[position + 1 :]])
    else:
        _run("fit", tokens)


def _run(command: str, tokens: list[str]) -> None:
    if not {"", os.getcwd()} & {*sys.path}:
        sys.path.insert(0, os.getcwd())
    asks_for_help = any(token == "-h" or token.startswith("--help") for token in tokens)
    if "torch" not in sys.modules and not asks_for_help and (command == "compare" or sys.stderr.isatty()):
        print("Importing Lightning ...", file=sys.stderr, flush=True)
    if command == "compare" and "torch" not in sys.modules and not asks_for_help:
        start_early()
    try:
        if command == "compare":
            from lightning_znorm.compare.command import run_command

            run_command(tokens)
        elif command == "report":
            from lightning_znorm.compare.report_command import run_report

            run_report(tokens)
        elif command == "doctor":
            from lightning_znorm.doctor import examine

            if tokens:
                fail(f"`lightning-znorm doctor` takes no options, but got {' '.join(tokens)}.")
            sys.exit(examine())
        else:
            from lightning_znorm.cli.parser import run_trainer_command

            run_trainer_command(tokens)
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        fail(message)


def _find_command(tokens: Sequence[str]) -> int | None:
    """Return the position of the first token that is neither an option nor the value of ``--config``."""
    for position, token in enumerate(tokens):
        if not token.startswith("-") and tokens[position - 1 : position] not in (["-c"], ["--config"]):
            return position
    return None


def _make_parser() -> ArgumentParser:
    commands = "\n".join(f"  {name:<10}{description}" for name, description in _COMMANDS.items())
    parser = ArgumentParser(
        prog="lightning-znorm",
        usage="lightning-znorm COMMAND [options]",
        description="Train any LightningModule, with z-score gradient normalization (ZNorm) as a flag, and measure"
        f" whether that helps.\n\ncommands:\n{commands}",
        epilog=_EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the versions of the package, Lightning and torch")
    return parser


def _list_versions() -> list[str]:
    versions = []
    for package in ("lightning", "pytorch-lightning", "torch"):
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return versions


if __name__ == "__main__":
    main()
