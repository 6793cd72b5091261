"""A run: a method, a setting and a seed."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_znorm.compare.identity.values import identify
from lightning_znorm.compare.question.methods import Method
from lightning_znorm.compare.question.syntax import format_value


@dataclass(frozen=True)
class Setting:
    """A combination of swept values.

    Attributes:
        number: Position among the settings of a method, in the order of the swept values.
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
        varied: A key that is set to the seed, such as that of a split; ``None`` for none.

    """

    method: Method
    setting: Setting
    seed: int
    varied: str | None = None

    @property
    def values(self) -> dict[str, Any]:
        """Value of each key that is set in this run."""
        return {**self.setting.values, **({self.varied: self.seed} if self.varied else {})}

    @property
    def key(self) -> str:
        """Name of the run's folder: readable and unique."""
        identity = {"method": self.method.identity, "setting": self.values, "seed": self.seed}
        digest = fingerprint(identity)[:8]
        readable = "-".join([self.method.label, *str(self.setting).split(), f"seed{self.seed}"])
        return f"{re.sub(r'[^A-Za-z0-9.=_-]+', '_', readable)[:80]}-{digest}"

    def __str__(self) -> str:
        return ", ".join(filter(None, [self.method.label, str(self.setting), f"seed {self.seed}"]))


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
