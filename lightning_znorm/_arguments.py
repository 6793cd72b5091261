"""Arguments of constructors, brought into the form in which they are kept."""

import math
from collections.abc import Callable, Iterable
from functools import wraps
from inspect import signature
from numbers import Integral, Real
from typing import ParamSpec

from lightning_znorm._errors import describe, did_you_mean, listing

P = ParamSpec("P")


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
