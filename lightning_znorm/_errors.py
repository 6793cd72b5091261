"""Pieces of error messages."""

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from numbers import Number
from typing import NoReturn


def fail(message: str) -> NoReturn:
    """End the command with an error of its own: one line, and exit status 2."""
    print(f"lightning-znorm: error: {message}", file=sys.stderr)
    sys.exit(2)


def listing(names: Sequence[str], limit: int = 20) -> str:
    """Join names for an error message."""
    shown = ", ".join(names[:limit])
    return shown + (f", … ({len(names)} in all)" if len(names) > limit else "") if names else "none at all"


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Return a hint at the nearest of the known names, or nothing."""
    near = get_close_matches(name, known, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def describe(value: object) -> str:
    """Return a wrong argument as an error shows it: a plain value as it is, a network or the like by its type.

    Example::

        >>> describe(0.5), describe("a"), describe(int), describe([1, 2])
        ('0.5', "'a'", 'the class `int`', 'an object of type `list`')

    """
    if value is None or isinstance(value, (str, bytes, Number)):
        return repr(value)
    if isinstance(value, type):
        return f"the class `{value.__name__}`"
    return f"an object of type `{type(value).__name__}`"
