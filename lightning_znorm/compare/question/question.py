"""The question that a comparison answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lightning_znorm.compare.question.directions import Mode as Mode
from lightning_znorm.compare.question.directions import guess_mode
from lightning_znorm.compare.question.methods import Method, label_methods, parse_methods
from lightning_znorm.compare.question.plan import (
    Run,
    Setting,
    make_runs,
    make_settings,
    parse_seeds,
    parse_sweep,
)
from lightning_znorm.errors import ArgumentValueError, join_names


@dataclass(frozen=True)
class Question:
    """What is compared, and by which metrics.

    Attributes:
        methods: The gradient transforms.
        sweep: Values of each swept key; every method is run with each combination.
        seeds: Seeds that all methods share.
        monitor: Validation metric that selects each method's setting.
        mode: Whether low or high values of the monitor are better.
        test_monitor: Test metric that is reported.
        baseline: Label of the method that the others are compared with.

    """

    methods: Sequence[Method]
    sweep: Mapping[str, list[Any]]
    seeds: Sequence[int]
    monitor: str
    mode: Mode
    test_monitor: str
    baseline: str

    @property
    def labels(self) -> list[str]:
        """Labels of the methods."""
        return [method.label for method in self.methods]

    @cached_property
    def settings(self) -> list[Setting]:
        """All combinations of the swept values, by their numbers."""
        return make_settings(self.sweep)

    @property
    def has_one_setting(self) -> bool:
        """Whether there is only one setting, so that none is selected."""
        return len(self.settings) == 1

    @property
    def direction(self) -> str:
        """Which values of the metrics are better, in words."""
        return "higher is better" if self.mode == "max" else "lower is better"

    @cached_property
    def runs(self) -> list[Run]:
        """All runs, in the order in which they are made."""
        return make_runs(self.methods, self.settings, self.seeds)


def parse_question(
    methods: str | Sequence[str] | Mapping[str, Any],
    sweep: str | Sequence[str] | Mapping[str, Sequence[Any]] | None,
    seeds: int | Sequence[int],
    monitor: str,
    mode: Mode | None,
    test_monitor: str | None,
    baseline: str | None,
) -> Question:
    """Make a question of the arguments of a comparison; raise ``ValueError`` if one is wrong."""
    parsed = label_methods(methods) if isinstance(methods, Mapping) else parse_methods(methods)
    labels = [method.label for method in parsed]
    if mode not in (None, "min", "max"):
        raise ArgumentValueError(f"Expected argument `mode` to be 'min' or 'max', but got {mode!r}.")
    baseline = baseline or ("none" if "none" in labels else labels[0])
    if baseline not in labels:
        raise ArgumentValueError(
            f"Expected argument `baseline` to be one of the methods ({join_names(labels)}), but got {baseline!r}."
        )
    return Question(
        methods=parsed,
        sweep=parse_sweep(sweep),
        seeds=parse_seeds(seeds),
        monitor=monitor,
        mode=mode or guess_mode(monitor),
        test_monitor=test_monitor or guess_test_monitor(monitor),
        baseline=baseline,
    )


def guess_test_monitor(monitor: str) -> str:
    """Infer the name of the test metric from that of the validation metric.

    Raises:
        ValueError: If the name does not begin like those of validation metrics.

    Example::

        >>> guess_test_monitor("val_acc"), guess_test_monitor("valid/dice")
        ('test_acc', 'test/dice')

    """
    for prefix in ("validation", "valid", "val", "Validation", "Valid", "Val"):
        if monitor.startswith(prefix):
            test = "Test" if prefix[0] == "V" else "test"
            return test + monitor.removeprefix(prefix)
    raise ArgumentValueError(
        f"Argument `test_monitor` is needed: the name of the test metric cannot be inferred from the monitor"
        f" {monitor!r}, as it does not begin with `val`. Name it, such as `--compare.test_monitor test_acc`."
    )
