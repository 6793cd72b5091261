"""Errors that this package raises on purpose, what their messages are made of, and the checks that raise them.

Each class is also the built-in one that a reader expects, so that ``except ValueError`` goes on working. The command
``lightning-znorm`` prints them in a line; every other error keeps its traceback.
"""

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from functools import wraps
from importlib.util import find_spec
from inspect import signature
from numbers import Integral, Number, Real
from typing import NoReturn, ParamSpec

__all__ = ["ArgumentTypeError", "ArgumentValueError", "MissingPackageError", "NonfiniteGradientError", "ZNormError"]

P = ParamSpec("P")


class ZNormError(Exception):
    """Base of all errors that this package raises on purpose, with a message for the user."""


class ArgumentValueError(ZNormError, ValueError):
    """An argument or a setting is of the right type and out of range, or contradicts another."""


class ArgumentTypeError(ZNormError, TypeError):
    """An argument, a gradient or a module is of a type that cannot be used."""


class MissingPackageError(ZNormError, ModuleNotFoundError):
    """An optional package is not installed."""


class NonfiniteGradientError(ZNormError, RuntimeError):
    """A gradient has an inf or NaN, with ``nonfinite="raise"`` or too often in a row with ``"skip"``."""


def require_package(module: str, owner: str, extra: str) -> None:
    """Raise :class:`MissingPackageError` if an optional package is missing."""
    if find_spec(module) is None:
        raise MissingPackageError(
            f'{owner} needs {module}, which is not installed. Install it: `pip install "lightning-znorm[{extra}]"`.',
            name=module,
        )


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


def finite_number(value: object) -> float | None:
    """Return a finite real number of any type as a ``float``, ``None`` for anything else and for a bool."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def integer(value: object) -> int | None:
    """Return an integer of any type as an ``int``, ``None`` for anything else and for a bool."""
    return None if isinstance(value, bool) or not isinstance(value, Integral) else int(value)


def count(name: str, value: object, least: int = 0) -> int:
    """Return the argument ``name`` as an ``int``; raise ``ValueError`` unless it is an integer from ``least`` on."""
    number = integer(value)
    if number is None or number < least:
        raise ValueError(f"Expected argument `{name}` to be an integer of at least {least}, but got {describe(value)}.")
    return number


def patterns(value: object) -> tuple[str, ...]:
    """Return the argument ``exclude`` as a tuple; a single string is one pattern.

    Raises:
        TypeError: If it is anything but a string or strings.

    """
    if isinstance(value, str):
        return (value,)
    expected = "Expected argument `exclude` to be a pattern or a list of patterns, such as ['*.bias', 'head.*']"
    if not isinstance(value, Iterable):
        raise TypeError(f"{expected}, but got {describe(value)}.")
    entries = tuple(value)
    for i, entry in enumerate(entries):
        if not isinstance(entry, str):
            raise TypeError(f"{expected}, but `exclude[{i}]` is {describe(entry)}.")
    return entries


def with_known_keywords(init: Callable[P, None]) -> Callable[P, None]:
    """Make a constructor name the nearest of its arguments in the error for an unknown keyword."""
    known = [*signature(init).parameters][1:]

    @wraps(init)
    def checked(*args: P.args, **kwargs: P.kwargs) -> None:
        for name in kwargs:
            if name not in known:
                raise TypeError(
                    f"`{type(args[0]).__name__}` has no argument `{name}`.{did_you_mean(name, known)} Its arguments"
                    f" are {listing(known)}."
                )
        init(*args, **kwargs)

    return checked
