"""LightningCLI with ZNorm as a flag: :class:`ZNormCLI` for your own command line, and ``lightning-znorm fit``."""

import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from lightning_znorm._lightning import import_all, import_lightning, rank_zero_warn
from lightning_znorm.callbacks import ZNorm
from lightning_znorm.cli.command import CommandParser
from lightning_znorm.cli.flags import GROUP, ZNormFlags
from lightning_znorm.errors import require_packages, unknown_choice

__all__ = ["ZNormArguments", "ZNormCLI"]

_lightning_cli = import_lightning("cli")


class ZNormArguments:
    """Mixin that gives a ``LightningCLI`` of either package the flags of :class:`ZNormCLI`.

    Example::

        >>> from pytorch_lightning.cli import LightningCLI
        >>> from pytorch_lightning.demos.boring_classes import BoringModel
        >>> class MyCLI(ZNormArguments, LightningCLI):
        ...     pass
        >>> cli = MyCLI(BoringModel, run=False, args=["--znorm", "--trainer.logger=false"])
        >>> [callback for callback in cli.trainer.callbacks if "ZNorm" in repr(callback)]
        [ZNorm(eps=1e-10, ..., enabled=True)]

    """

    _parser_mixin: type = ZNormFlags

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        require_packages("The command line", "cli", "jsonargparse")
        parser_class = kwargs.pop("parser_class", None) or self._find_parser_class()
        if not issubclass(parser_class, self._parser_mixin):
            parser_class = type(parser_class.__name__, (self._parser_mixin, parser_class), {"__module__": __name__})
        super().__init__(*args, parser_class=parser_class, **kwargs)  # type: ignore[call-arg]

    @classmethod
    def _find_parser_class(cls) -> Any:
        (package,) = {base.__module__ for base in cls.__mro__ if base.__name__ == "LightningCLI"}
        return import_module(package).LightningArgumentParser

    def add_core_arguments_to_parser(self, parser: Any) -> None:
        """Add the group ``znorm``, off by default, next to trainer, model and data."""
        super().add_core_arguments_to_parser(parser)  # type: ignore[misc]
        parser.add_lightning_class_args(ZNorm, GROUP)
        parser.set_defaults({f"{GROUP}.enabled": False})

    def before_instantiate_classes(self) -> None:
        """Warn if arguments of ZNorm are set, for example in a default file, but ZNorm is off."""
        super().before_instantiate_classes()  # type: ignore[misc]
        config = self.config.get(str(self.subcommand), self.config)  # type: ignore[attr-defined]
        group = vars(config.get(GROUP))
        settings = {
            name: value for name, value in group.items() if not name.startswith("__")
        }  # no `__path__` of a file
        defaults = ZNorm()._arguments()
        arguments = ZNorm(**settings)._arguments()
        changed = [name for name, value in arguments.items() if name != "enabled" and value != defaults[name]]
        if changed and not settings["enabled"]:
            rank_zero_warn(
                f"`{GROUP}.{changed[0]}` is set, but ZNorm is off. Add `--{GROUP}` (or `enabled: true` in the file)."
            )


class ZNormCLI(ZNormArguments, _lightning_cli.LightningCLI):  # type: ignore[misc, name-defined]
    """A drop-in for :class:`~lightning.pytorch.cli.LightningCLI` with ZNorm as a flag.

    ZNorm is off by default. ``--znorm`` switches it on and ``--no_znorm`` off; ``--znorm.eps=1e-8`` and every other
    ``--znorm.ARGUMENT=…`` of :class:`~lightning_znorm.ZNorm` switch it on, too; ``--znorm FILE`` reads the arguments
    from a YAML file. The last option wins. In a configuration file, a group ``znorm:`` switches it on unless it has
    ``enabled: false``. Modules are those of ``lightning.pytorch``; for ``pytorch_lightning``, mix
    :class:`ZNormArguments` into its ``LightningCLI``, or use ``--trainer.callbacks+=lightning_znorm.ZNorm``. The
    command ``lightning-znorm`` takes them with ``--package pytorch_lightning``.

    Args:
        *args: As for ``LightningCLI``.
        **kwargs: As for ``LightningCLI``. The flags are added to your own ``parser_class``.

    Raises:
        ModuleNotFoundError: If jsonargparse is not installed.

    Example::

        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_znorm.cli import ZNormCLI
        >>> cli = ZNormCLI(BoringModel, run=False, args=["--znorm.min_ndim=2", "--trainer.logger=false"])
        >>> [callback for callback in cli.trainer.callbacks if "ZNorm" in repr(callback)]
        [ZNorm(eps=1e-10, exclude=(), min_ndim=2, ..., enabled=True)]

    """


class _CommandArguments(ZNormArguments):
    """The flags in a command of this package, whose parser has short errors and a short help."""

    _parser_mixin = CommandParser

    def add_core_arguments_to_parser(self, parser: Any) -> None:
        super().add_core_arguments_to_parser(parser)
        parser.add_group_help("trainer", "options of the Trainer")
        parser.add_group_help(GROUP, "arguments of ZNorm")
        parser.groups[GROUP].description = "--znorm and --no_znorm switch it on and off; any argument switches it on."


def run_trainer_command(args: Sequence[str]) -> None:
    """Run ``lightning-znorm fit|validate|test|predict``."""
    package, others = take_package(args)
    # LightningCLI warns about arguments that are passed while the process has arguments, too
    cli_args = None if others == sys.argv[1:] else others
    make_cli_class(package)(args=cli_args, parser_kwargs={"prog": "lightning-znorm"})


def make_cli_class(package: str, fit_schema: bool = False) -> Any:
    """Return a ``LightningCLI`` with the flags, for the modules of one Lightning package.

    Args:
        package: ``lightning.pytorch`` or ``pytorch_lightning``.
        fit_schema: Whether it accepts the arguments of ``fit`` without a subcommand.

    """
    cli = import_module(f"{package}.cli").LightningCLI
    bases = (_CommandArguments, _FitSchema, cli) if fit_schema else (_CommandArguments, cli)
    return type("ZNormCLI", bases, {"__module__": __name__})


class _FitSchema:
    """Mixin for a LightningCLI with ``run=False`` that adds the arguments of ``fit``."""

    def add_arguments_to_parser(self, parser: Any) -> None:
        super().add_arguments_to_parser(parser)  # type: ignore[misc]
        parser.add_method_arguments(self.trainer_class, "fit", skip=self.subcommands()["fit"])  # type: ignore[attr-defined]


def package_of(model_class: type) -> str:
    """Return the Lightning package of a module's class, ``lightning.pytorch`` or ``pytorch_lightning``."""
    bases = [base for base in model_class.__mro__ if base.__name__ == "LightningModule"]
    is_standalone = bases and bases[0].__module__.partition(".")[0] == "pytorch_lightning"
    return "pytorch_lightning" if is_standalone else _lightning_cli.__name__.rpartition(".")[0]


def take_package(args: Sequence[str]) -> tuple[str, list[str]]:
    """Split ``--package`` off a command line.

    Returns:
        The Lightning package of the modules, by default the first installed one, and all other arguments.

    Raises:
        ValueError: If the package is not one of Lightning's.

    Example::

        >>> take_package(["fit", "--package=pytorch_lightning", "--znorm"])
        ('pytorch_lightning', ['fit', '--znorm'])

    """
    parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--package", nargs="?", default=_list_packages()[0])
    options, others = parser.parse_known_args(list(args))
    if options.package not in _list_packages():
        raise unknown_choice("package", options.package, _list_packages())
    return options.package, others


def _list_packages() -> list[str]:
    return [module.__name__.removesuffix(".cli") for module in import_all("cli")]
