"""The command line: ``lightning-znorm fit|validate|test|predict``, and :class:`ZNormCLI` to build one's own."""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from lightning_znorm._compat import MisconfigurationException, import_lightning, rank_zero_warn
from lightning_znorm._flags import GROUP, ZNormFlags
from lightning_znorm.callbacks import ZNorm

__all__ = ["ZNormArguments", "ZNormCLI", "main"]

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

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if find_spec("jsonargparse") is None:
            raise ModuleNotFoundError(
                "The command line needs jsonargparse, which is not installed. Install it:"
                ' `pip install "lightning-znorm[cli]"`.'
            )
        parser_class = kwargs.pop("parser_class", None) or self._parser_of_the_package()
        if not issubclass(parser_class, ZNormFlags):
            parser_class = type(parser_class.__name__, (ZNormFlags, parser_class), {"__module__": __name__})
        super().__init__(*args, parser_class=parser_class, **kwargs)  # type: ignore[call-arg]

    @classmethod
    def _parser_of_the_package(cls) -> Any:
        (package,) = {base.__module__ for base in cls.__mro__ if base.__name__ == "LightningCLI"}
        return import_module(package).LightningArgumentParser

    def add_core_arguments_to_parser(self, parser: Any) -> None:
        """Add the group ``znorm``, off by default, beside trainer, model and data."""
        super().add_core_arguments_to_parser(parser)  # type: ignore[misc]
        parser.add_lightning_class_args(ZNorm, GROUP)
        parser.set_defaults({f"{GROUP}.enabled": False})

    def before_instantiate_classes(self) -> None:
        """Warn when arguments of ZNorm came in, by a default file say, without switching it on."""
        super().before_instantiate_classes()  # type: ignore[misc]
        group = vars(self._get(self.config, GROUP))  # type: ignore[attr-defined]
        given = {name: value for name, value in group.items() if not name.startswith("__")}  # not `__path__` of a file
        defaults = ZNorm()._arguments()
        arguments = ZNorm(**given)._arguments()
        changed = [name for name, value in arguments.items() if name != "enabled" and value != defaults[name]]
        if changed and not given["enabled"]:
            rank_zero_warn(
                f"`{GROUP}.{changed[0]}` is set, but ZNorm is off. Add `--{GROUP}` (or `enabled: true` in the file)."
            )


class ZNormCLI(ZNormArguments, _lightning_cli.LightningCLI):  # type: ignore[misc, name-defined]
    """A drop-in for :class:`~lightning.pytorch.cli.LightningCLI` with ZNorm as a flag.

    ZNorm is off unless asked for. ``--znorm`` switches it on and ``--no_znorm`` off; ``--znorm.eps=1e-8`` and every
    other ``--znorm.ARGUMENT=…`` of :class:`~lightning_znorm.ZNorm` switches it on too; ``--znorm FILE`` reads the
    arguments from a YAML file. The last word wins. In a configuration file, a group ``znorm:`` switches it on unless
    it says ``enabled: false``. Modules are those of ``lightning.pytorch``; for ``pytorch_lightning``, mix
    :class:`ZNormArguments` into its ``LightningCLI``, or use ``--trainer.callbacks+=lightning_znorm.ZNorm``.

    Args:
        *args: As of ``LightningCLI``.
        **kwargs: As of ``LightningCLI``. A ``parser_class`` of one's own keeps working and learns the flags.

    Raises:
        ModuleNotFoundError: If jsonargparse is not installed.

    Example::

        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_znorm.cli import ZNormCLI
        >>> cli = ZNormCLI(BoringModel, run=False, args=["--znorm.min_ndim=2", "--trainer.logger=false"])
        >>> [callback for callback in cli.trainer.callbacks if "ZNorm" in repr(callback)]
        [ZNorm(eps=1e-10, exclude=(), min_ndim=2, ..., enabled=True)]

    """


def main(args: Sequence[str] | None = None) -> None:
    """Run ``lightning-znorm``.

    An error that this package raises on purpose (a wrong argument, an unsupported configuration, a missing extra) is
    printed in one line, with exit status 2; any other error keeps its traceback.

    Args:
        args: Command-line arguments, ``sys.argv[1:]`` by default.

    """
    packages = (_lightning_cli.__name__.partition(".")[0], "torch")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    try:
        ZNormCLI(
            args=None if args is None else list(args),
            parser_kwargs={
                "prog": "lightning-znorm",
                "version": f"{version('lightning-znorm')} ({versions})",
                "description": "Train any LightningModule, with z-score gradient normalization (ZNorm) as a flag.",
            },
        )
    except (MisconfigurationException, ModuleNotFoundError, TypeError, ValueError) as error:
        ours = _our_own(error)
        if ours is None:
            raise
        print(f"lightning-znorm: error: {ours}", file=sys.stderr)
        sys.exit(2)


def _our_own(error: BaseException | None) -> BaseException | None:
    """Find the error that this package raised, which jsonargparse wraps into one about types of arguments."""
    while error is not None:
        traceback = error.__traceback__
        while traceback is not None and traceback.tb_next is not None:
            traceback = traceback.tb_next
        raised_in = "" if traceback is None else str(traceback.tb_frame.f_globals.get("__name__", ""))
        if raised_in.partition(".")[0] == __package__:
            return error
        error = error.__cause__
    return None
