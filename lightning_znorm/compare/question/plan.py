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
from lightning_znorm.errors import ArgumentValueError, count


@dataclass(frozen=True)
class Setting:
    """A combination of the swept values, as which ``str`` writes it.

    Attributes:
        number: Its place among the settings of a question, by which tables refer to it.
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
        method: How it treats the gradient.
        setting: The swept values.
        seed: For ``seed_everything``.

    """

    method: Method
    setting: Setting
    seed: int

    @property
    def key(self) -> str:
        """Name of the run's folder: readable, and different from that of any other run."""
        identity = {"method": self.method.identity(), "setting": dict(self.setting.values), "seed": self.seed}
        digest = fingerprint(identity)[:8]
        readable = "-".join([self.method.label, *str(self.setting).split(), f"seed{self.seed}"])
        return f"{re.sub(r'[^A-Za-z0-9.=_-]+', '_', readable)[:80]}-{digest}"

    def __str__(self) -> str:
        return ", ".join(filter(None, [self.method.label, str(self.setting), f"seed {self.seed}"]))


def make_runs(methods: Sequence[Method], settings: Sequence[Setting], seeds: Sequence[int]) -> list[Run]:
    """List all runs, so that whatever has been done when it is interrupted can be compared.

    Returns:
        All methods of the first setting and seed, then of the next setting, then of the next seed.

    """
    return [Run(method, setting, seed) for seed, setting, method in product(seeds, settings, methods)]


def parse_sweep(sweep: str | Sequence[str] | Mapping[str, Sequence[Any]] | None) -> dict[str, list[Any]]:
    """Read which values each key takes.

    Args:
        sweep: ``key=value,value,…``, several keys separated by blanks or in a list; or a mapping of keys to lists.

    Raises:
        ValueError: If it is not of this form, or a key has no value or one of its values twice.

    Example::

        >>> parse_sweep("model.init_args.lr=1e-4,1e-3 data.init_args.batch_size=32,64")
        {'model.init_args.lr': [0.0001, 0.001], 'data.init_args.batch_size': [32, 64]}

    """
    if sweep is None:
        return {}
    swept: dict[str, list[Any]] = {}
    if isinstance(sweep, Mapping):
        pairs = [(key, _as_list(key, values)) for key, values in sweep.items()]
    else:
        entries = [sweep] if isinstance(sweep, str) else sweep
        written = [part for entry in entries for part in split_outside_brackets(entry, r"\s")]
        pairs = [_parse_pair(part) for part in written]
    for key, values in pairs:
        if key in swept:
            raise ArgumentValueError(f"Argument `sweep` has the key `{key}` twice. Give all its values in one list.")
        if not values:
            raise ArgumentValueError(
                f"Argument `sweep` has no value for the key `{key}`; expected `{key}=value,value`."
            )
        for value in values:
            if [format_value(other) for other in values].count(format_value(value)) > 1:
                raise ArgumentValueError(f"Argument `sweep` has the value {format_value(value)} of `{key}` twice.")
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
    """Read the seeds: their number, or the seeds themselves.

    Raises:
        ValueError: If the number is less than 1, or a seed is negative or given twice.

    Example::

        >>> parse_seeds(3), parse_seeds([7, 11])
        ([0, 1, 2], [7, 11])

    """
    if isinstance(seeds, int):
        return list(range(count("seeds", seeds, least=1)))
    chosen = list(seeds)
    if not chosen or len({*chosen}) < len(chosen) or min(chosen) < 0:
        raise ArgumentValueError(
            f"Expected argument `seeds` to be a number or a list of different seeds, but got {seeds!r}."
        )
    return chosen


def format_values(values: Mapping[str, Any]) -> str:
    """Write swept values with the last part of each key, where that is enough.

    Example::

        >>> format_values({"model.init_args.lr": 0.001, "data.init_args.batch_size": 32})
        'lr=0.001, batch_size=32'

    """
    return ", ".join(
        f"{name}={format_value(value)}" for name, value in zip(short_names(values), values.values(), strict=True)
    )


def short_names(keys: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """Return the last part of each key, or the whole keys where last parts are the same."""
    last = [key.rpartition(".")[2] for key in keys]
    return last if len({*last}) == len(last) else list(keys)


def fingerprint(value: Any) -> str:
    """Return a hash of a value that JSON can write; what JSON does not know goes by value, too."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=identify).encode()).hexdigest()


def _parse_pair(text: str) -> tuple[str, list[Any]]:
    key, equals, values = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_][\w.-]*", key):
        raise ArgumentValueError(
            f"Argument `sweep` has {text!r}; expected `key=value,value,…`, such as model.init_args.lr=1e-3,1e-2."
        )
    return key, [parse_value(value) for value in split_outside_brackets(values, ",")]


def _as_list(key: str, values: Any) -> list[Any]:
    if isinstance(values, str):
        return [parse_value(value) for value in split_outside_brackets(values, ",")]
    if not isinstance(values, Sequence):
        raise ArgumentValueError(f"Argument `sweep` has {values!r} for the key `{key}`; expected a list of values.")
    return [parse_value(value) if isinstance(value, str) else value for value in values]
