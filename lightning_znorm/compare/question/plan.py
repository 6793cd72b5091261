"""The runs of a comparison: methods x settings x seeds."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from lightning_znorm.compare.identity.values import identify
from lightning_znorm.compare.question.methods import Method
from lightning_znorm.compare.question.syntax import format_value, parse_value, split_outside_brackets
from lightning_znorm.errors import ArgumentValueError, require_count


@dataclass(frozen=True)
class Setting:
    """A combination of swept values.

    Attributes:
        number: Position among the settings of a question; tables refer to it.
        values: Value of each swept key.

    """

    number: int = 0
    values: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return format_values(self.values)


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        method: The gradient transform.
        setting: The swept values.
        seed: The seed for ``seed_everything``.

    """

    method: Method
    setting: Setting
    seed: int

    @property
    def key(self) -> str:
        """Name of the run's folder: readable and unique."""
        identity = {"method": self.method.identity, "setting": dict(self.setting.values), "seed": self.seed}
        digest = fingerprint(identity)[:8]
        readable = "-".join([self.method.label, *str(self.setting).split(), f"seed{self.seed}"])
        return f"{re.sub(r'[^A-Za-z0-9.=_-]+', '_', readable)[:80]}-{digest}"

    def __str__(self) -> str:
        return ", ".join(filter(None, [self.method.label, str(self.setting), f"seed {self.seed}"]))


def make_runs(methods: Sequence[Method], settings: Sequence[Setting], seeds: Sequence[int]) -> list[Run]:
    """List all runs: methods of a setting and seed side by side, so that an interrupted comparison has pairs."""
    return [Run(method, setting, seed) for seed, setting, method in product(seeds, settings, methods)]


def parse_sweep(sweep: str | Sequence[str] | Mapping[str, Sequence[Any]] | None) -> dict[str, list[Any]]:
    """Parse ``key=value,value,…``, several keys separated by blanks or in a list, or a mapping of keys to lists.

    Raises:
        ValueError: If it has another form, or a key has no value or a value twice.

    Example::

        >>> parse_sweep("model.init_args.lr=1e-4,1e-3 data.init_args.batch_size=32,64")
        {'model.init_args.lr': [0.0001, 0.001], 'data.init_args.batch_size': [32, 64]}

    """
    if sweep is None:
        return {}
    swept: dict[str, list[Any]] = {}
    if isinstance(sweep, Mapping):
        pairs = [(key, _parse_values(key, values)) for key, values in sweep.items()]
    else:
        entries = [sweep] if isinstance(sweep, str) else sweep
        pairs = [_parse_pair(pair) for entry in entries for pair in split_outside_brackets(entry, r"\s")]
    for key, values in pairs:
        if key in swept:
            raise ArgumentValueError(f"Argument `sweep` has the key `{key}` twice. Give all its values in one list.")
        if not values:
            raise ArgumentValueError(
                f"Argument `sweep` has no value for the key `{key}`; expected `{key}=value,value`."
            )
        texts = [format_value(value) for value in values]
        for text in texts:
            if texts.count(text) > 1:
                raise ArgumentValueError(f"Argument `sweep` has the value {text} of `{key}` twice. Give it once.")
        swept[key] = values
    return swept


def make_settings(sweep: Mapping[str, Sequence[Any]]) -> list[Setting]:
    """Combine the values of all keys.

    Example::

        >>> [str(setting) for setting in make_settings({"lr": [0.1, 0.01], "depth": [20]})]
        ['lr=0.1, depth=20', 'lr=0.01, depth=20']

    """
    combinations = enumerate(product(*sweep.values()))
    return [Setting(number, dict(zip(sweep, values, strict=True))) for number, values in combinations]


def parse_seeds(seeds: int | Sequence[int]) -> list[int]:
    """Return the seeds, given a number of them or a list.

    Raises:
        ValueError: If the number is less than 1, or a seed is negative or repeated.

    Example::

        >>> parse_seeds(3), parse_seeds([7, 11])
        ([0, 1, 2], [7, 11])

    """
    if isinstance(seeds, int):
        return list(range(require_count("seeds", seeds, least=1)))
    numbers = list(seeds)
    if not numbers or len({*numbers}) < len(numbers) or min(numbers) < 0:
        raise ArgumentValueError(
            f"Expected argument `seeds` to be a number or a list of different seeds from 0 on, but got {seeds!r}."
        )
    return numbers


def format_values(values: Mapping[str, Any]) -> str:
    """Format swept values, with short keys where these are unique.

    Example::

        >>> format_values({"model.init_args.lr": 0.001, "data.init_args.batch_size": 32})
        'lr=0.001, batch_size=32'

    """
    pairs = zip(shorten_keys(values), values.values(), strict=True)
    return ", ".join(f"{name}={format_value(value)}" for name, value in pairs)


def shorten_keys(keys: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """Return the last part of each key, or whole keys if last parts are the same."""
    names = [key.rpartition(".")[2] for key in keys]
    return names if len({*names}) == len(names) else list(keys)


def fingerprint(value: Any) -> str:
    """Return a hash of a value for JSON, in which other objects count by value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=identify).encode()).hexdigest()


def _parse_pair(text: str) -> tuple[str, list[Any]]:
    key, equals, values = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_][\w.-]*", key):
        raise ArgumentValueError(
            f"Argument `sweep` contains {text!r}; expected `key=value,value,…`, such as model.init_args.lr=1e-3,1e-2."
        )
    return key, _parse_values(key, values)


def _parse_values(key: str, values: Any) -> list[Any]:
    if isinstance(values, str):
        return [parse_value(value) for value in split_outside_brackets(values, ",")]
    if not isinstance(values, Sequence):
        raise ArgumentValueError(f"Argument `sweep` has {values!r} for the key `{key}`; expected a list of values.")
    return [parse_value(value) if isinstance(value, str) else value for value in values]
