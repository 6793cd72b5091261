"""Errors that this package raises on purpose, helpers for their messages, and the checks of arguments.

Each class derives from the matching built-in error, so that ``except ValueError`` catches it, too. The command
``lightning-znorm`` prints these errors in one line; all others keep their traceback. Nothing here needs torch or
Lightning.
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
    "CollectiveError",
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


class CollectiveError(ZNormError, RuntimeError):
    """The ranks could not add up the statistics of gradients: one of them has ended or is late."""


class ComparisonError(ZNormError, ValueError):
    """A comparison cannot be made: a trial has failed, a step or a loader is missing, a metric is not logged."""


class DataError(ZNormError, ValueError):
    """An image, a mask or another part of a data set is damaged or not in the expected format."""


class DownloadError(ZNormError, RuntimeError):
    """A data set cannot be downloaded, or the files of an earlier download are incomplete."""


class FileError(ZNormError, OSError):
    """A file cannot be read or written."""


class MissingFileError(FileError, FileNotFoundError):
    """A file or a folder does not exist."""


class MissingPackageError(ZNormError, ModuleNotFoundError):
    """A package is not installed; the message names the extra that installs it."""


class NonfiniteGradientError(ZNormError, RuntimeError):
    """A gradient has an inf or NaN, with ``nonfinite="raise"`` or in too many consecutive steps with ``"skip"``."""


def require_packages(owner: str, extra: str, *modules: str) -> None:
    """Raise :class:`MissingPackageError` if one of the modules that an extra installs cannot be imported.

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
    """Print an error in one line and exit with status 2."""
    print(f"lightning-znorm: error: {message}", file=sys.stderr)
    sys.exit(2)


def user_message(error: BaseException) -> str | None:
    """Return the message of a :class:`ZNormError`, also one that jsonargparse wraps; ``None`` for any other error."""
    cause: BaseException | None = error
    while cause is not None and _is_raised_by_jsonargparse(cause):
        cause = cause.__cause__ or cause.__context__
    if not isinstance(cause, ZNormError):
        return None
    # a DataLoader raises the error of a worker again with the worker's traceback as its message
    return str(cause).rpartition(f"{type(cause).__module__}.{type(cause).__qualname__}: ")[2].strip()


def _is_raised_by_jsonargparse(error: BaseException) -> bool:
    """Return whether jsonargparse itself raised an error, not code that it calls."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    return bool(frames) and str(frames[-1].f_globals.get("__name__")).partition(".")[0] == "jsonargparse"


def join_names(names: Sequence[str], limit: int = 20) -> str:
    """Join names for an error message, at most ``limit`` of them."""
    first_names = ", ".join(names[:limit])
    return first_names + (f", … ({len(names)} in all)" if len(names) > limit else "") if names else "none"


def did_you_mean(name: str, choices: Sequence[str], limit: int = 1) -> str:
    """Return a hint at the choices nearest to a name, whatever their case; an empty text if none is near."""
    by_lower_case = {choice.lower(): repr(choice) for choice in choices}
    matches = [by_lower_case[match] for match in get_close_matches(name.lower(), by_lower_case, n=limit)]
    return f" Did you mean {' or '.join(matches)}?" if matches else ""


def unknown_choice(argument: str, value: object, choices: Iterable[str]) -> ArgumentValueError:
    """Build the error for a name that is not among the choices.

    Example::

        >>> str(unknown_choice("optimizer", "Adma", ["SGD", "Adam"]))
        "Expected argument `optimizer` to be one of 'Adam', 'SGD', but got 'Adma'. Did you mean 'Adam'?"

    """
    names = sorted(choices)
    return ArgumentValueError(
        f"Expected argument `{argument}` to be one of {join_names([*map(repr, names)])}, but got {describe(value)}."
        f"{did_you_mean(str(value), names, limit=3)}"
    )


def describe(value: object) -> str:
    """Describe a wrong argument in an error: numbers and text by their value, other objects by their type.

    Example::

        >>> describe(0.5), describe("a"), describe(int), describe([1, 2])
        ('0.5', "'a'", 'the class `int`', 'an object of type `list`')

    """
    if value is None or isinstance(value, (str, bytes, Number)):
        return repr(value)
    if isinstance(value, type):
        return f"the class `{value.__name__}`"
    return f"an object of type `{type(value).__name__}`"


def to_finite_number(value: object) -> float | None:
    """Return a finite real number of any type as a ``float``, ``None`` for anything else and for a bool."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def require_positive(name: str, value: object, remedy: str, kind: str = "positive number") -> float:
    """Return the argument ``name`` as a ``float``; raise ``ValueError`` unless it is a positive finite number."""
    number = to_finite_number(value)
    if number is None or number <= 0:
        raise ArgumentValueError(f"Expected argument `{name}` to be a {kind}, but got {describe(value)}. {remedy}")
    return number


def to_integer(value: object) -> int | None:
    """Return an integer of any type as an ``int``, ``None`` for anything else and for a bool."""
    return None if isinstance(value, bool) or not isinstance(value, Integral) else int(value)


def require_count(name: str, value: object, least: int = 0) -> int:
    """Return the argument ``name`` as an ``int``; raise ``ValueError`` unless it is an integer of ``least`` or more."""
    number = to_integer(value)
    if number is None or number < least:
        raise ArgumentValueError(
            f"Expected argument `{name}` to be an integer of at least {least}, but got {describe(value)}."
        )
    return number


def require_fraction(name: str, value: object) -> float:
    """Return the argument ``name`` as a ``float``; raise ``ValueError`` unless it is between 0 and 1, both excluded."""
    number = to_finite_number(value)
    if number is None or not 0 < number < 1:
        raise ArgumentValueError(f"Expected argument `{name}` to be between 0 and 1, but got {describe(value)}.")
    return number


def require_patterns(value: object) -> tuple[str, ...]:
    """Return the argument ``exclude`` as a tuple; raise ``TypeError`` unless it is one string or several."""
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
    """Decorate a constructor so that its error for an unknown keyword suggests the nearest argument."""
    names = [*signature(init).parameters][1:]

    @wraps(init)
    def checked_init(*args: P.args, **kwargs: P.kwargs) -> None:
        for name in kwargs:
            if name not in names:
                raise ArgumentTypeError(
                    f"`{type(args[0]).__name__}` has no argument `{name}`.{did_you_mean(name, names)} Its arguments"
                    f" are {join_names(names)}."
                )
        init(*args, **kwargs)

    return checked_init
