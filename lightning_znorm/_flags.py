"""The parser behind ``--znorm`` and ``--no_znorm``: a mixin for Lightning's argument parser."""

import sys
from collections.abc import Sequence
from typing import Any

GROUP = "znorm"

_ON, _OFF = f"--{GROUP}.enabled=true", f"--{GROUP}.enabled=false"


class ZNormFlags:
    """Mixin for :class:`~lightning.pytorch.cli.LightningArgumentParser` that understands the ZNorm flags.

    jsonargparse has no bare ``--znorm`` beside a group of that name, so the flags are rewritten before it sees them,
    and groups from files are completed after it has read them.
    """

    def parse_args(self, args: Sequence[str] | None = None, *others: Any, **kwargs: Any) -> Any:
        """Parse the command line after :func:`expand_flags`."""
        args = sys.argv[1:] if args is None else args
        return super().parse_args(expand_flags(args), *others, **kwargs)  # type: ignore[misc]

    def parse_string(self, *args: Any, **kwargs: Any) -> Any:
        """Parse a configuration file's content; ``znorm`` in it switches ZNorm on unless it says otherwise."""
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


def expand_flags(args: Sequence[str]) -> list[str]:
    """Rewrite the ZNorm flags into options that jsonargparse knows.

    Args:
        args: Command-line tokens.

    Returns:
        The tokens with a bare ``--znorm`` and ``--no_znorm`` replaced, and each option of the group preceded by the one
        that switches ZNorm on, so that what comes later still wins.

    Example::

        >>> expand_flags(["fit", "--znorm", "--trainer.max_epochs=1"])
        ['fit', '--znorm.enabled=true', '--trainer.max_epochs=1']
        >>> expand_flags(["fit", "--no_znorm", "--znorm.eps", "1e-8"])
        ['fit', '--znorm.enabled=false', '--znorm.enabled=true', '--znorm.eps', '1e-8']

    """
    expanded = []
    for position, token in enumerate(args):
        following = args[position + 1] if position + 1 < len(args) else None
        name, _, value = token.partition("=")
        if token == f"--no_{GROUP}" or (name == f"--{GROUP}" and value.lower() == "false"):
            expanded.append(_OFF)
        elif name == f"--{GROUP}" and (value.lower() == "true" or _is_bare(token, following)):
            expanded.append(_ON)
        elif name == f"--{GROUP}" or (name.startswith(f"--{GROUP}.") and name != f"--{GROUP}.enabled"):
            expanded += [_ON, token]
        else:
            expanded.append(token)
    return expanded


def _is_bare(token: str, following: str | None) -> bool:
    return token == f"--{GROUP}" and (following is None or following.startswith("-"))
