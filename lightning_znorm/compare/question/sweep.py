"""The swept values: lists, and ranges in which a number is searched for."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from lightning_znorm.compare.question.candidates import Candidates, Listed
from lightning_znorm.compare.question.run import Setting
from lightning_znorm.compare.question.search import Crossed, Search
from lightning_znorm.compare.question.syntax import format_value, parse_value, split_outside_brackets
from lightning_znorm.errors import ArgumentValueError, join_names, to_finite_number

AUTO = "auto"
_FORMS = "a list such as 1e-3,1e-2, a range such as 1e-5..1e-3, auto, or auto(1e-3) with a start"


@dataclass(frozen=True)
class Range:
    """Where a number is searched for.

    Attributes:
        start: The first value; ``None`` for the configured one, or the middle of a range with two ends.
        low: Lowest value.
        high: Highest value.

    """

    start: float | None = None
    low: float = 0.0
    high: float = math.inf

    @property
    def is_open(self) -> bool:
        """Whether the range has no ends."""
        return self.high == math.inf

    def make_search(self, key: str, configured: float | None, trials: int, others: Mapping[str, Any]) -> Search:
        """Return the search for the value of a key, with values of other keys.

        Raises:
            ValueError: If there is no value to start from.

        """
        start = self.start
        if start is None:
            start = configured if self.is_open else float(f"{math.sqrt(self.low * self.high):.3g}")
        if start is None:
            raise ArgumentValueError(
                f"Argument `sweep`: `{key}` has no positive number in the configuration to start the search from. Give"
                f" one: `{key}=auto(1e-3)`."
            )
        return Search(key, start, self.low, self.high, trials, others=others)


Values = Sequence[Any] | Range
Sweep = Mapping[str, Values | Mapping[str, Values]]  # by key; a mapping has other values for each method


def find_values(values: Values | Mapping[str, Values], label: str) -> Values:
    """Return the values that are tried for a method."""
    return values.get(label, Range()) if isinstance(values, Mapping) else values


def parse_sweep(sweep: str | Sequence[str] | Mapping[str, Any] | None, labels: Sequence[str] = ()) -> Sweep:
    """Parse ``key=values``, several keys separated by blanks or in a list, or a mapping of keys to values.

    Args:
        sweep: The text or mapping. Values are a list, ``auto``, ``auto(start)``, ``low..high``, or a mapping of labels
            of methods to one of these.
        labels: Labels of the methods.

    Raises:
        ValueError: If it has another form, or a key has no value or a value twice.

    Example::

        >>> parse_sweep("model.init_args.lr=1e-4,1e-3 data.init_args.batch_size=32,64")
        {'model.init_args.lr': [0.0001, 0.001], 'data.init_args.batch_size': [32, 64]}
        >>> parse_sweep("lr=auto(1e-3)"), parse_sweep("lr={znorm: 1e-5..1e-3}", ["none", "znorm"])
        ({'lr': Range(start=0.001, low=0.0, high=inf)}, {'lr': {'znorm': Range(start=None, low=1e-05, high=0.001)}})

    """
    if sweep is None:
        return {}
    swept: dict[str, Values | Mapping[str, Values]] = {}
    if isinstance(sweep, Mapping):
        pairs = list(sweep.items())
    else:
        entries = [sweep] if isinstance(sweep, str) else sweep
        pairs = [_split_pair(pair) for entry in entries for pair in split_outside_brackets(entry, r"\s")]
    for key, text in pairs:
        if key in swept:
            raise ArgumentValueError(f"Argument `sweep` has the key `{key}` twice. Give all its values in one list.")
        values = _parse_values(key, text)
        (by_method,) = values if isinstance(values, list) and len(values) == 1 else (values,)
        if isinstance(by_method, Mapping) and by_method and {*by_method} <= {*labels}:
            swept[key] = {label: _parse_values(key, own) for label, own in by_method.items()}
        elif isinstance(values, Mapping) or (isinstance(by_method, Mapping) and {*by_method} & {*labels}):
            raise ArgumentValueError(
                f"Argument `sweep` has values of `{key}` for {join_names(list(by_method))}, but the methods are"
                f" {join_names(labels)}."
            )
        else:
            swept[key] = values
    searched = [key for key, values in swept.items() if _list_ranges(values)]
    if len(searched) > 1:
        raise ArgumentValueError(
            f"Argument `sweep` searches {join_names(searched)}. Search one, and give lists of values of the others."
        )
    return swept


def find_searched_key(sweep: Sweep) -> str | None:
    """Return the key of the number that is searched for, ``None`` if all values are listed."""
    return next((key for key, values in sweep.items() if _list_ranges(values)), None)


def is_open(values: Values | Mapping[str, Values]) -> bool:
    """Return whether a number is searched for without ends, by a method at least."""
    return any(found.is_open for found in _list_ranges(values))


def make_candidates(sweep: Sweep, label: str, configured: Mapping[str, float], trials: int) -> Candidates:
    """Return the settings of a method.

    Args:
        sweep: The swept values.
        label: Label of the method.
        configured: Value of keys in the configuration.
        trials: Number of values that a search tries.

    """
    values = {key: find_values(every, label) for key, every in sweep.items()}
    settings = make_settings({key: listed for key, listed in values.items() if not isinstance(listed, Range)})
    for key, own in values.items():
        if isinstance(own, Range):
            searches = [own.make_search(key, configured.get(key), trials, setting.values) for setting in settings]
            return searches[0] if len(searches) == 1 else Crossed(searches)
    return Listed(settings)


def make_settings(sweep: Mapping[str, Sequence[Any]]) -> list[Setting]:
    """Combine the values of all keys.

    Example::

        >>> [str(setting) for setting in make_settings({"lr": [0.1, 0.01], "depth": [20]})]
        ['lr=0.1, depth=20', 'lr=0.01, depth=20']

    """
    combinations = enumerate(product(*sweep.values()))
    return [Setting(number, dict(zip(sweep, values, strict=True))) for number, values in combinations]


def _list_ranges(values: Values | Mapping[str, Values]) -> list[Range]:
    """Return the ranges among the values of a key."""
    return [
        found for found in (values.values() if isinstance(values, Mapping) else [values]) if isinstance(found, Range)
    ]


def _split_pair(text: str) -> tuple[str, str]:
    key, equals, values = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_][\w.-]*", key):
        raise ArgumentValueError(
            f"Argument `sweep` contains {text!r}; expected `key=values`, such as model.init_args.lr=1e-3,1e-2 or"
            " lr=auto."
        )
    return key, values


def _parse_values(key: str, values: Any) -> Any:
    """Return a list, a range, or a mapping as it is."""
    if isinstance(values, (Range, Mapping)):
        return values
    if isinstance(values, str):
        texts = split_outside_brackets(values, ",")
        found = _parse_range(key, texts[0]) if len(texts) == 1 else None
        if found is not None:
            return found
        values = [parse_value(text) for text in texts]
    elif not isinstance(values, Sequence):
        raise ArgumentValueError(f"Argument `sweep` has {values!r} for the key `{key}`; expected {_FORMS}.")
    values = [parse_value(value) if isinstance(value, str) else value for value in values]
    if not values:
        raise ArgumentValueError(f"Argument `sweep` has no value for the key `{key}`; expected {_FORMS}.")
    texts = [format_value(value) for value in values]
    for text in texts:
        if texts.count(text) > 1:
            raise ArgumentValueError(f"Argument `sweep` has the value {text} of `{key}` twice. Give it once.")
    return values


def _parse_range(key: str, text: str) -> Range | None:
    """Return the range that a text means, ``None`` if it is a value."""
    if match := re.fullmatch(rf"{AUTO}(?:\((.*)\))?", text):
        return Range(None if match[1] is None else _parse_positive(key, match[1]))
    low, dots, high = text.partition("..")
    if not dots or not all(re.fullmatch(r"\s*[\d.]+(e[+-]?\d+)?\s*", end, re.IGNORECASE) for end in (low, high)):
        return None
    ends = Range(None, _parse_positive(key, low), _parse_positive(key, high))
    if ends.low >= ends.high:
        raise ArgumentValueError(f"Argument `sweep` has the range {text} of `{key}`, which ends before it begins.")
    return ends


def _parse_positive(key: str, text: str) -> float:
    number = to_finite_number(parse_value(text))
    if number is None or number <= 0:
        raise ArgumentValueError(f"Argument `sweep` has {text!r} for the key `{key}`; expected a positive number.")
    return number
