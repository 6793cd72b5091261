"""Checks of what a DataModule is given."""

from importlib.util import find_spec
from typing import TypeVar

Number = TypeVar("Number", int, float)


def require(package: str, distribution: str, owner: str, extra: str) -> None:
    """Raise if a package that a DataModule reads its data with is not installed.

    Raises:
        ModuleNotFoundError: With the extra that brings it.

    """
    if find_spec(package) is None:
        raise ModuleNotFoundError(
            f"`{owner}` reads its data with {distribution}, which is not installed. Install it:"
            f' `pip install "lightning-znorm[{extra}]"`.',
            name=package,
        )


def at_least(argument: str, value: Number, bound: Number) -> Number:
    """Return the value if it is at least the bound.

    Raises:
        ValueError: Naming the argument, if it is less.

    """
    if value < bound:
        raise ValueError(f"Expected argument `{argument}` to be at least {bound}, but got {value!r}.")
    return value


def between(argument: str, value: float, low: float, high: float) -> float:
    """Return the value if it is strictly between the bounds.

    Raises:
        ValueError: Naming the argument, if it is not.

    """
    if not low < value < high:
        raise ValueError(f"Expected argument `{argument}` to be between {low} and {high}, but got {value!r}.")
    return value
