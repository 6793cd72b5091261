"""Errors that this package raises on purpose, what their messages are made of, and the checks that raise them.

Each class is also the built-in one that a reader expects, so that ``except ValueError`` goes on working. The command
``lightning-znorm`` prints them in a line; every other error keeps its traceback. Nothing here needs torch or Lightning.
"""

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from functools import wraps
from importlib.util import find_spec
from inspect import signature
from numbers import Integral, Number, Real
from traceback import walk_tb
from typing import NoReturn, ParamSpec

__all__ = [
    "ArgumentTypeError",
    "ArgumentValueError",
    "ComparisonError",
    "DataError",
    "DownloadError",
    "FileError",
    "MissingFileError",
    "MissingPackageError",
    "NonfiniteGradientError",
    "ZNormError",
]

P = ParamSpec("P")
_DISTRIBUTIONS = {"segmentation_models_pytorch": "segmentation-models-pytorch", "sklearn": "scikit-learn"}


class ZNormError(Exception):
    """Base of all errors that this package raises on purpose, with a message for the user.

    Example::

        >>> from lightning_znorm import GradientMonitor, ZNormError
        >>> try:
        ...     GradientMonitor(max_records=1)
        ... except ZNormError as error:
        ...     print(type(error).__name__, isinstance(error, ValueError))
        ArgumentValueError True

    """


class ArgumentValueError(ZNormError, ValueError):
    """An argument or a setting is out of range, or contradicts another."""


class ArgumentTypeError(ZNormError, TypeError):
    """An argument, a gradient or a module is of a type that cannot be used."""


class ComparisonError(ZNormError, ValueError):
    """A comparison cannot be made: a trial has failed, a step or a loader is missing, a metric is not logged."""


class DataError(ZNormError, ValueError):
    """An image, a mask or another part of a data set is damaged or not of the form that is expected."""


class DownloadError(ZNormError, RuntimeError):
    """A data set cannot be downloaded, or what is left of an earlier download is incomplete."""


class FileError(ZNormError, OSError):
    """A file cannot be read or written."""


class MissingFileError(FileError, FileNotFoundError):
    """A file or a folder does not exist."""


class MissingPackageError(ZNormError, ModuleNotFoundError):
    """A package is not installed; the message names the extra that brings it."""


class NonfiniteGradientError(ZNormError, RuntimeError):
    """A gradient has an inf or NaN, with ``nonfinite="raise"`` or too often in a row with ``"skip"``."""


def require_packages(owner: str, extra: str, *modules: str) -> None:
    """Raise :class:`MissingPackageError` if one of the modules that an extra brings cannot be imported.

    Example::

        >>> require_packages("`fly`", "wings", "sys", "antigravity_2")
        Traceback (most recent call last):
        lightning_znorm.errors.MissingPackageError: `fly` needs antigravity_2, which is not installed. Install it: `pip
        install "lightning-znorm[wings]"`.

    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        names = ", ".join(_DISTRIBUTIONS.get(module, module) for module in missing)
        verb, pronoun = ("is", "it") if len(missing) == 1 else ("are", "them")
        raise MissingPackageError(
            f"{owner} needs {names}, which {verb} not installed. Install {pronoun}:"
            f' `pip install "lightning-znorm[{extra}]"`.',
            name=missing[0],
        )


def fail(message: str) -> NoReturn:
    """End the command with an error of its own: one line, and exit status 2."""
    print(f"lightning-znorm: error: {message}", file=sys.stderr)
    sys.exit(2)


def own_message(error: BaseException) -> str | None:
    """Return the message of an error of this package, also if jsonargparse has wrapped it; ``None`` for any other."""
    behind: BaseException | None = error
    while behind is not None and _is_raised_by_jsonargparse(behind):
        behind = behind.__cause__ or behind.__context__
    if not isinstance(behind, ZNormError):
        return None
    # a DataLoader hands over what a worker raised with the whole traceback as its message
    return str(behind).rpartition(f"{type(behind).__module__}.{type(behind).__qualname__}: ")[2].strip()


def _is_raised_by_jsonargparse(error: BaseException) -> bool:
    """Say whether an error comes from jsonargparse itself, not from what it calls."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    return bool(frames) and str(frames[-1].f_globals.get("__name__")).partition(".")[0] == "jsonargparse"


def listing(names: Sequence[str], limit: int = 20) -> str:
    """Join names for an error message."""
    shown = ", ".join(names[:limit])
    return shown + (f", … ({len(names)} in all)" if len(names) > limit else "") if names else "none at all"


def did_you_mean(name: str, known: Sequence[str], most: int = 1) -> str:
    """Return a hint at the nearest of the known names, upper or lower case, or nothing."""
    by_lower_case = {other.lower(): repr(other) for other in known}
    near = [by_lower_case[match] for match in get_close_matches(name.lower(), by_lower_case, n=most)]
    return f" Did you mean {' or '.join(near)}?" if near else ""


def unknown_choice(argument: str, value: object, choices: Iterable[str]) -> ArgumentValueError:
    """Build the error for a name that is not among the choices.

    Example::

        >>> str(unknown_choice("optimizer", "Adma", ["SGD", "Adam"]))
        "Expected argument `optimizer` to be one of 'Adam', 'SGD', but got 'Adma'. Did you mean 'Adam'?"

    """
    names = sorted(choices)
    return ArgumentValueError(
        f"Expected argument `{argument}` to be one of {listing([*map(repr, names)])}, but got {describe(value)}."
        f"{did_you_mean(str(value), names, most=3)}"
    )


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


def positive_number(name: str, value: object, remedy: str, kind: str = "positive number") -> float:
    """Return the argument ``name`` as a ``float``; raise ``ValueError`` unless it is a positive finite number."""
    number = finite_number(value)
    if number is None or number <= 0:
        raise ArgumentValueError(f"Expected argument `{name}` to be a {kind}, but got {describe(value)}. {remedy}")
    return number


def integer(value: object) -> int | None:
    """Return an integer of any type as an ``int``, ``None`` for anything else and for a bool."""
    return None if isinstance(value, bool) or not isinstance(value, Integral) else int(value)


def count(name: str, value: object, least: int = 0) -> int:
    """Return the argument ``name`` as an ``int``; raise ``ValueError`` unless it is an integer from ``least`` on."""
    number = integer(value)
    if number is None or number < least:
        raise ArgumentValueError(
            f"Expected argument `{name}` to be an integer of at least {least}, but got {describe(value)}."
        )
    return number


def share(name: str, value: object) -> float:
    """Return the argument ``name`` as a ``float``; raise ``ValueError`` unless it is between 0 and 1, and neither."""
    number = finite_number(value)
    if number is None or not 0 < number < 1:
        raise ArgumentValueError(f"Expected argument `{name}` to be between 0 and 1, but got {describe(value)}.")
    return number


def patterns(value: object) -> tuple[str, ...]:
    """Return the argument ``exclude`` as a tuple; a single string is one pattern.

    Raises:
        ArgumentTypeError: If it is anything but a string or strings.

    """
    if isinstance(value, str):
        return (value,)
    expected = "Expected argument `exclude` to be a pattern or a list of patterns, such as ['*.bias', 'head.*']"
    if not isinstance(value, Iterable):
        raise ArgumentTypeError(f"{expected}, but got {describe(value)}.")
    entries = tuple(value)
    for i, entry in enumerate(entries):
        if not isinstance(entry, str):
            raise ArgumentTypeError(f"{expected}, but `exclude[{i}]` is {describe(entry)}.")
    return entries


def with_known_keywords(init: Callable[P, None]) -> Callable[P, None]:
    """Make a constructor name the nearest of its arguments in the error for an unknown keyword."""
    known = [*signature(init).parameters][1:]

    @wraps(init)
    def checked(*args: P.args, **kwargs: P.kwargs) -> None:
        for name in kwargs:
            if name not in known:
                raise ArgumentTypeError(
                    f"`{type(args[0]).__name__}` has no argument `{name}`.{did_you_mean(name, known)} Its arguments"
                    f" are {listing(known)}."
                )
        init(*args, **kwargs)

    return checked
