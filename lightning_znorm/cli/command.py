"""The parser of the command ``lightning-znorm``: a mixin with short errors and a short help."""

import os
from argparse import _HelpAction
from collections.abc import Iterator, Sequence
from types import SimpleNamespace, UnionType
from typing import Any, NoReturn, Union, get_args, get_origin

from lightning_znorm.cli.flags import ZNormFlags
from lightning_znorm.cli.messages import shorten
from lightning_znorm.errors import fail

_Parser: Any = object  # the argument parser of one of the Lightning packages
_MORE_HELP = (
    "--model my_module.MyModel --data my_module.MyData names both by class path, --model.KEY VALUE sets an argument;"
    " --config FILE reads these and all other options from a file, and --print_config writes one. --help=all lists all"
    " options. --package pytorch_lightning takes modules of that package instead of lightning.pytorch."
)


def _type_dicts(hint: Any) -> Any:
    """Replace ``dict`` by ``dict[str, Any]`` in a type hint."""
    if get_origin(hint) in (Union, UnionType):
        return Union[tuple(map(_type_dicts, get_args(hint)))]  # noqa: UP007
    return dict[str, Any] if hint is dict else hint


class CommandParser(ZNormFlags, _Parser):  # type: ignore[misc]
    """Mixin for :class:`~lightning.pytorch.cli.LightningArgumentParser`.

    ``--help`` shows the groups of :attr:`leading` first and omits those that have a ``--GROUP.help``; ``--help=all``
    shows all options. Options cannot be abbreviated, so that a misspelt one is not mistaken for another. Errors are
    printed without usage; with ``JSONARGPARSE_DEBUG=1`` in the environment they are those of jsonargparse.

    Attributes:
        leading: Names of groups of options.
        hidden: Options that the short help omits, without their dashes.

    """

    leading: Sequence[str] = ("znorm",)
    hidden: Sequence[str] = ()
    groups: dict[str, Any]
    usage: str | None
    description: str | None
    _action_groups: Sequence[Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"prog": "lightning-znorm", "add_help": False, "allow_abbrev": False, **kwargs})
        self.add_argument("-h", "--help", action=_Help, help="show this help, or all options, and exit")

    def add_argument(self, *args: Any, **kwargs: Any) -> Any:
        """Add an argument; for a ``dict`` without types, ``--dict.key=0.1`` is a number, as in a file, and not text."""
        action = super().add_argument(*args, **kwargs)
        if hasattr(action, "_typehint"):
            action._typehint = _type_dicts(action._typehint)
        return action

    def add_group_help(self, group: str, content: str) -> None:
        """Add ``--GROUP.help``, which prints the options of a group."""
        self.groups[group].add_argument(f"--{group}.help", action=_GroupHelp, help=f"show the {content} and exit")

    def format_help(self, *args: Any) -> str:
        """Return the short help, if this is the parser of a command."""
        if {*self.leading} <= {*self.groups}:
            return self.format_groups(list(self._select_groups()), self.description)
        return str(super().format_help(*args))

    def format_groups(self, groups: Sequence[Any], description: str | None = None) -> str:
        """Return the help of some groups of options."""
        original = self._action_groups, self.usage, self.description
        usage = f"{self.prog.replace(' [options]', '')} [options]"
        try:
            self._action_groups, self.usage, self.description = groups, usage, description
            return str(super().format_help())
        finally:
            self._action_groups, self.usage, self.description = original

    def _select_groups(self) -> Iterator[Any]:
        leading = [self.groups[name] for name in self.leading]
        yield from leading
        topics = []
        for group in self._action_groups:
            if group in leading:
                continue
            helps = [action for action in group._group_actions if action.dest.endswith(".help")]
            topics += [action for action in helps if action.dest.count(".") == 1]
            actions = [action for action in group._group_actions if not helps and action.dest not in self.hidden]
            if actions:
                yield SimpleNamespace(title=group.title, description=group.description, _group_actions=actions)
        yield SimpleNamespace(title="models, data and more", description=_MORE_HELP, _group_actions=topics)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the problem and its remedy, and exit with status 2."""
        if not self.exit_on_error or "JSONARGPARSE_DEBUG" in os.environ:
            super().error(message, ex)
        fail(shorten(message, self))


class _Help(_HelpAction):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.nargs, self.metavar = "?", "all"

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if values not in (None, "all"):
            parser.error(f"argument --help: expected nothing or `all`, but got {values!r}")
        all_groups = parser._action_groups, parser.description
        print(parser.format_groups(*all_groups) if values == "all" else parser.format_help(), end="")
        parser.exit()


class _GroupHelp(_HelpAction):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        print(parser.format_groups([parser.groups[self.dest.removesuffix(".help")]]), end="")
        parser.exit()
