"""A question whose learning rate is still to be found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lightning_znorm.compare.question.methods import Method
from lightning_znorm.compare.question.question import Question
from lightning_znorm.compare.question.run import Run, Setting
from lightning_znorm.compare.question.stages import Design
from lightning_znorm.compare.question.sweep import (
    Range,
    Sweep,
    find_searched_key,
    find_values,
    is_open,
    make_candidates,
)

RATE = "lr"  # stands for the learning rate, wherever it is in the configuration
_FACTOR = 10**0.5  # by which a number is changed to see whether that changes the learning rate


@dataclass(frozen=True)
class Draft:
    """A question, except for which key sets the learning rate.

    Attributes:
        methods: The gradient transforms.
        baseline: Label of the method that the others are compared with.
        sweep: The swept values; the key ``lr`` stands for one of ``rates``.
        rates: Keys that may set the learning rate, with their positive number in the configuration.
        configured: Number of each key in the configuration.
        trials: Number of values that a search tries.
        is_optional: Whether there is no sweep where no key sets the learning rate.
        is_verified: Whether the swept key is known to set the learning rate.
        options: Other arguments of the design.
        metrics: Other arguments of the question.

    """

    methods: Sequence[Method]
    baseline: str
    sweep: Sweep
    rates: Mapping[str, float]
    configured: Mapping[str, float]
    trials: int = 9
    is_optional: bool = False
    is_verified: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_settled(self) -> bool:
        """Whether no key stands for another."""
        return RATE not in self.sweep or RATE in self.rates

    @property
    def is_certain(self) -> bool:
        """Whether the question is known without a trial."""
        return self.is_settled and not self.list_probes()

    def recall(self, keys: Sequence[str]) -> "Draft":
        """Return the draft as it was settled before, given the keys that were swept then."""
        draft, known = self, [key for key in keys if key in self.rates]
        if not self.is_settled and known:
            draft = self.settle(known[0])
        elif self.is_optional and not keys:
            draft = replace(self, sweep={})
        return replace(draft, is_verified={*draft.sweep} == {*keys})

    @property
    def question(self) -> Question:
        """The question, once it is settled."""
        design = Design(
            self.methods,
            self.baseline,
            {
                method.label: make_candidates(self.sweep, method.label, self.configured, self.trials)
                for method in self.methods
            },
            **self.options,
        )
        return Question(design, list(self.sweep), **self.metrics)

    def settle(self, key: str | None) -> "Draft":
        """Return a draft in which the learning rate has a key, or is not swept."""
        if key is None:
            return replace(self, sweep={name: values for name, values in self.sweep.items() if name != RATE})
        sweep = {key if name == RATE else name: values for name, values in self.sweep.items()}
        return replace(self, sweep=sweep)

    def list_probes(self) -> dict[str, Run]:
        """Return a run for each key that may set the learning rate, in which it has another value.

        There are none if the learning rate is not to be found, nor searched for without an end.
        """
        key = find_searched_key(self.sweep)
        if not self.is_settled:
            keys = [*self.rates]
        elif key is not None and is_open(self.sweep[key]) and not self.is_verified:
            keys = [key]
        else:
            return {}
        runs, values = self.list_first_runs(), self.sweep.get(keys[0], Range())
        searching = [run for run in runs if isinstance(find_values(values, run.method.label), Range)]
        first = (searching or runs)[0]
        probes = {}
        for name in keys:
            value = first.setting.values.get(name, self.rates.get(name))
            changed = {**first.setting.values, name: float(f"{value * _FACTOR:.3g}")}
            probes[name] = replace(first, setting=Setting(0, changed))
        return probes

    def list_first_runs(self) -> list[Run]:
        """Return a run of each method at the setting that it tries first, with the configured learning rate so far."""
        return (self if self.is_settled else self.settle(None)).question.list_first_runs()
