"""The parser behind ``--znorm``, ``--no_znorm`` and other flags: a mixin for Lightning's argument parser."""

import sys
from collections.abc import Sequence
from typing import Any

GROUP = "znorm"

_ON, _OFF = f"--{GROUP}.enabled=true", f"--{GROUP}.enabled=false"
_NO_ARGUMENTS = (f"--{GROUP}.enabled", f"--{GROUP}.help")


class ZNormFlags:
    """Mixin for :class:`~lightning.pytorch.cli.LightningArgumentParser` that accepts the ZNorm flags.

    jsonargparse does not support a bare ``--znorm`` besides a group of that name, so the flags are rewritten before
    parsing, and groups from files are completed after parsing.

    Attributes:
        switches: Further boolean options; without a value, they are true.

    """

    switches: Sequence[str] = ()

    def parse_args(self, args: Sequence[str] | None = None, *others: Any, **kwargs: Any) -> Any:
        """Parse the command line, rewritten by :func:`expand_flags`."""
        args = sys.argv[1:] if args is None else args
        return super().parse_args(expand_flags(args, self.switches), *others, **kwargs)  # type: ignore[misc]

    def parse_string(self, *args: Any, **kwargs: Any) -> Any:
        """Parse a configuration file's content; a group ``znorm`` switches ZNorm on unless it sets ``enabled``."""
        config = super().parse_string(*args, **kwargs)  # type: ignore[misc]
        for group in (GROUP, *(f"{subcommand}.{GROUP}" for subcommand in self._subcommand_names())):
            if isinstance(config.get(group), bool):
                config[f"{group}.enabled"] = config.pop(group)
            elif group in config and f"{group}.enabled" not in config:
                config[f"{group}.enabled"] = True
        return config

    def _subcommand_names(self) -> Sequence[str]:
        subcommands = getattr(self, "_subcommands_action", None)
        return () if subcommands is None else tuple(subcommands.choices)


def expand_flags(args: Sequence[str], switches: Sequence[str] = ()) -> list[str]:
    """Rewrite flags into options that jsonargparse supports.

    Args:
        args: Command-line tokens.
        switches: Boolean options, such as ``--compare.dry_run``.

    Returns:
        The tokens with a bare ``--znorm``, ``--no_znorm`` and bare switches replaced, and each option of the group
        ``znorm`` preceded by the one that switches ZNorm on, so that later options still win.

    Example::

        >>> expand_flags(["fit", "--znorm", "--trainer.max_epochs=1"])
        ['fit', '--znorm.enabled=true', '--trainer.max_epochs=1']
        >>> expand_flags(["fit", "--no_znorm", "--znorm.eps", "1e-8"])
        ['fit', '--znorm.enabled=false', '--znorm.enabled=true', '--znorm.eps', '1e-8']
        >>> expand_flags(["--compare.dry_run", "--compare.retry", "false"], ["--compare.dry_run", "--compare.retry"])
        ['--compare.dry_run=true', '--compare.retry', 'false']

    """
    expanded = []
    for position, token in enumerate(args):
        is_bare = position + 1 == len(args) or args[position + 1].startswith("-")
        name, equals, value = token.partition("=")
        if token == f"--no_{GROUP}" or (name == f"--{GROUP}" and value.lower() == "false"):
            expanded.append(_OFF)
        elif name == f"--{GROUP}" and (value.lower() == "true" or (is_bare and not equals)):
            expanded.append(_ON)
        elif name == f"--{GROUP}" or (name.startswith(f"--{GROUP}.") and name not in _NO_ARGUMENTS):
            expanded += [_ON, token]
        elif token in switches and is_bare:
            expanded.append(f"{token}=true")
        else:
            expanded.append(token)
    return expanded
