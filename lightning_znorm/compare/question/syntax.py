"""The syntax of values and lists on the command line."""

import re
from typing import Any

import yaml

from lightning_znorm.compare.identity.values import identify
from lightning_znorm.errors import ArgumentValueError

_PAIRS = {"(": ")", "[": "]", "{": "}"}


class _Loader(yaml.SafeLoader):
    """YAML 1.2: version 1.1 reads words such as ``no`` as booleans, and dates and times."""


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
    """Split a text at separators outside of brackets and quotation marks, and drop empty items.

    Args:
        text: The text.
        separator: A regular expression for one character.

    Raises:
        ValueError: If a bracket or a quotation mark is not closed.

    Example::

        >>> split_outside_brackets("none, znorm(min_ndim=2,exclude=['a,b'])", ",")
        ['none', "znorm(min_ndim=2,exclude=['a,b'])"]

    """
    items, closing, quote = [""], [], ""
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
            items.append("")
            continue
        items[-1] += character
    if closing or quote:
        raise ArgumentValueError(f"`{text}` lacks a closing {(quote or closing[-1])!r}.")
    return [item.strip() for item in items if item.strip()]


def parse_value(text: str) -> Any:
    """Parse a value of YAML 1.2: dates, times and words such as ``no`` are text, ``1e-3`` is a number.

    Example::

        >>> parse_value("1e-3"), parse_value("true"), parse_value("[a, 2]"), parse_value("SGD")
        (0.001, True, ['a', 2], 'SGD')
        >>> parse_value("2024-01-01"), parse_value("no"), parse_value("1:30")
        ('2024-01-01', 'no', '1:30')

    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ArgumentValueError(f"`{text}` is not a value in YAML.") from error


def format_value(value: Any) -> str:
    """Format a value briefly, and the same in every process.

    Example::

        >>> format_value(1e-3), format_value(0.30000000000000004), format_value("SGD")
        ('0.001', '0.3', 'SGD')

    """
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(getattr(value, "__qualname__", value))  # classes and functions by name
    if "<lambda>" in text or " at 0x" in text:
        text = f"{type(value).__qualname__}-{identify(value)[:6]}"
    return text
