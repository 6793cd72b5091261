"""Values and lists as they are written on the command line."""

import re
from typing import Any

import yaml

from lightning_znorm.compare.identity.values import identify
from lightning_znorm.errors import ArgumentValueError

_PAIRS = {"(": ")", "[": "]", "{": "}"}


class _Loader(yaml.SafeLoader):
    """YAML without what only its version 1.1 takes for a truth value, a time or a date."""


_RESOLVED = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    "int": (r"[-+]?(0|[1-9][0-9]*)|0o[0-7]+|0x[0-9a-fA-F]+", [*"-+0123456789"]),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        [*"-+.0123456789"],
    ),
}
_Loader.yaml_implicit_resolvers = {}
for _tag, (_pattern, _first) in _RESOLVED.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


def split_outside_brackets(text: str, separator: str) -> list[str]:
    """Split a text at the separators that stand in no bracket and no quotation marks.

    Args:
        text: What to split.
        separator: A regular expression for one character.

    Returns:
        The parts without surrounding blanks; empty ones are left out.

    Raises:
        ValueError: If a bracket or a quotation mark is not closed.

    Example::

        >>> split_outside_brackets("none, znorm(min_ndim=2,exclude=['a,b'])", ",")
        ['none', "znorm(min_ndim=2,exclude=['a,b'])"]

    """
    parts, closing, quote = [""], [], ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in _PAIRS:
            closing.append(_PAIRS[character])
        elif character in _PAIRS.values():
            if not closing or closing.pop() != character:
                raise ArgumentValueError(f"`{text}` has a {character!r} without its counterpart.")
        elif not closing and re.fullmatch(separator, character):
            parts.append("")
            continue
        parts[-1] += character
    if closing or quote:
        raise ArgumentValueError(f"`{text}` lacks a closing {(quote or closing[-1])!r}.")
    return [part.strip() for part in parts if part.strip()]


def parse_value(text: str) -> Any:
    """Read a value as YAML 1.2 does: dates, times and words such as ``no`` are text, ``1e-3`` is a number.

    Example::

        >>> parse_value("1e-3"), parse_value("true"), parse_value("[a, 2]"), parse_value("SGD")
        (0.001, True, ['a', 2], 'SGD')
        >>> parse_value("2024-01-01"), parse_value("no"), parse_value("1:30")
        ('2024-01-01', 'no', '1:30')

    """
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ArgumentValueError(f"`{text}` is not a value that YAML can read.") from error
    return value


def format_value(value: Any) -> str:
    """Write a value as short as it is clear, in every process alike.

    Example::

        >>> format_value(1e-3), format_value(0.30000000000000004), format_value("SGD")
        ('0.001', '0.3', 'SGD')

    """
    if isinstance(value, float):
        return f"{value:.6g}"
    shown = str(getattr(value, "__qualname__", value))  # classes and functions by name
    if "<lambda>" in shown or " at 0x" in shown:
        shown = f"{type(value).__qualname__}-{identify(value)[:6]}"
    return shown
