"""The arguments of a comparison."""

import math
from collections.abc import Mapping, Sequence
from itertools import count, islice
from typing import Any

from lightning_znorm.compare.question.directions import Mode, guess_mode
from lightning_znorm.compare.question.draft import RATE, Draft
from lightning_znorm.compare.question.methods import label_methods, parse_methods
from lightning_znorm.compare.question.pairs import LARGEST, MARGIN_REMEDY, count_least_pairs
from lightning_znorm.compare.question.sweep import AUTO, Range, Sweep, find_searched_key, parse_sweep
from lightning_znorm.errors import (
    ArgumentValueError,
    did_you_mean,
    join_names,
    require_count,
    require_positive,
    to_finite_number,
)

_RATE_NAMES = (RATE, "learning_rate")
_SELECTION_SEEDS = 3
_PAIRS = 8


def parse_question(
    methods: str | Sequence[str] | Mapping[str, Any],
    sweep: str | Sequence[str] | Mapping[str, Any] | None,
    monitor: str,
    mode: Mode | None = None,
    test_monitor: str | None = None,
    baseline: str | None = None,
    confirm: int | Sequence[int] | None = None,
    trials: int = 9,
    width: float | None = None,
    margin: float | None = None,
    vary: str | None = None,
    configured: Mapping[str, Any] | None = None,
) -> Draft:
    """Make a question of the arguments of a comparison; raise ``ValueError`` if one is wrong.

    Args:
        methods: The methods.
        sweep: The swept values; ``"auto"`` searches the learning rate if one key sets it.
        monitor: Validation metric.
        mode: Its direction.
        test_monitor: Test metric.
        baseline: Label of the baseline.
        confirm: Number of pairs, or their seeds.
        trials: Number of values that a search tries.
        width: Half the width of the interval that the number of pairs is to give.
        margin: The smallest difference that matters.
        vary: A key that is set to the seed.
        configured: Value of each key in the configuration.

    """
    parsed = label_methods(methods) if isinstance(methods, Mapping) else parse_methods(methods)
    labels = [method.label for method in parsed]
    if mode not in (None, "min", "max"):
        raise ArgumentValueError(f"Expected argument `mode` to be 'min' or 'max', but got {mode!r}.")
    baseline = baseline or ("none" if "none" in labels else labels[0])
    if baseline not in labels:
        raise ArgumentValueError(
            f"Expected argument `baseline` to be one of the methods ({join_names(labels)}), but got {baseline!r}."
        )
    if margin is not None:
        require_positive("margin", margin, MARGIN_REMEDY)
    configured = configured or {}
    swept: Sweep = {RATE: Range()} if sweep == AUTO else parse_sweep(sweep, labels)
    if vary in swept:
        raise ArgumentValueError(f"The key `{vary}` is swept, and cannot be set to the seed by `vary`, too.")
    _check_searched_key(swept, configured)
    numbers = {key: number for key, value in configured.items() if (number := _find_number(value)) is not None}
    rates = {
        key: number
        for key, number in numbers.items()
        if key.rpartition(".")[2] in _RATE_NAMES and not key.startswith("data.")
    }
    if RATE in configured and (RATE in numbers or sweep != AUTO):
        rates = {RATE: numbers.get(RATE, math.nan)}  # an argument of that name
    draft = Draft(
        parsed,
        baseline,
        swept,
        rates,
        {_shorten(key): number for key, number in numbers.items()} | numbers,
        require_count("trials", trials, least=1),
        is_optional=sweep == AUTO,
        options=_parse_pairs(confirm, width, comparisons=len(parsed) - 1) | {"varied": vary},
        metrics={
            "monitor": monitor,
            "mode": mode or guess_mode(monitor),
            "test_monitor": test_monitor or guess_test_monitor(monitor),
            "margin": margin,
        },
    )
    if not draft.is_settled and len(rates) < 2:
        if not rates and not draft.is_optional:
            raise ArgumentValueError(
                f"Argument `sweep`: no `{'` or `'.join(_RATE_NAMES)}` with a positive number is in the configuration."
                " Name the key of the learning rate, as in `model.init_args.rate=auto(1e-3)`."
            )
        draft = draft.settle(next(iter(rates), None))
    if draft.is_settled:
        draft.question  # raises the errors of its candidates  # noqa: B018
    return draft


def _parse_pairs(confirm: int | Sequence[int] | None, width: float | None, comparisons: int) -> dict[str, Any]:
    """Return seeds and numbers of a design."""
    least = count_least_pairs(comparisons=comparisons) if comparisons > 0 else 1
    if width is not None:
        require_positive("width", width, "Give half of the length that an interval should have.")
        if confirm is not None:
            raise ArgumentValueError(
                "Arguments `confirm` and `width` exclude each other: the width decides how many pairs are made."
            )
    if confirm is None:
        confirm = LARGEST if width is not None else max(_PAIRS, least)
    if isinstance(confirm, int):
        fresh = list(range(_SELECTION_SEEDS, _SELECTION_SEEDS + require_count("confirm", confirm, least=1)))
    else:
        fresh = list(confirm)
        if not fresh or len({*fresh}) < len(fresh) or min(fresh) < 0:
            raise ArgumentValueError(
                f"Expected argument `confirm` to be a number or a list of different seeds from 0 on, but got {fresh!r}."
            )
    if len(fresh) < least:
        raise ArgumentValueError(
            f"Argument `confirm` asks for {len(fresh)} pairs, with which no exact test of {comparisons} comparisons at"
            f" 5% can show a difference. Ask for {least} or more."
        )
    seeds = list(islice((seed for seed in count() if seed not in fresh), _SELECTION_SEEDS))
    return {"seeds": seeds, "fresh_seeds": fresh, "pairs": len(fresh), "width": width}


def _check_searched_key(sweep: Sweep, configured: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` if a search would start from the value of a key that does not exist."""
    key = find_searched_key(sweep)
    known = {_shorten(name) for name in configured}
    if key not in (None, RATE) and sweep[key] == Range() and _shorten(key) not in known:
        raise ArgumentValueError(
            f"Argument `sweep`: there is no `{key}` in the configuration to search."
            f"{did_you_mean(str(key), list(configured))}"
        )


def _shorten(key: str) -> str:
    """Return a key as it may be written on the command line, without ``init_args``."""
    return key.replace(".init_args", "")


def _find_number(value: Any) -> float | None:
    number = None if isinstance(value, bool) else to_finite_number(value)
    return number if number is not None and number > 0 else None


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
