"""What the figures say, in sentences."""

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from lightning_znorm.compare.options import Question
from lightning_znorm.compare.statistics import MIN_SEEDS
from lightning_znorm.compare.text import show_value

_MANY_SEEDS = 200


@dataclass(frozen=True)
class Unit:
    """How a metric is written: shares of 1 in percent, everything else as it is.

    Args:
        is_share: Whether the metric is a share of 1, of which more is better.

    """

    is_share: bool

    def value(self, value: float) -> str:
        """Write a metric."""
        if math.isnan(value):
            return "–"
        return f"{100 * value:.1f}" if self.is_share else f"{value:.4g}"

    def interval(self, low: float, high: float) -> str:
        """Write an interval, nothing if there is none."""
        return "" if math.isnan(low) else f"{self.value(low)} to {self.value(high)}"

    def interval_of_metric(self, low: float, high: float) -> str:
        """Write an interval of the metric itself, without what a share cannot be."""
        if self.is_share and not math.isnan(low):
            low, high = max(low, 0.0), min(high, 1.0)
        return self.interval(low, high)

    def difference(self, value: float) -> str:
        """Write the size of a difference."""
        return f"{abs(100 * value):.1f} points" if self.is_share else f"{abs(value):.3g}"

    @property
    def heading(self) -> str:
        """What to add to the metric's name."""
        return " (%)" if self.is_share else ""


def choose_unit(question: Question, runs: pd.DataFrame) -> Unit:
    """Take a metric for a share if it is to be maximized and all its values are between 0 and 1."""
    values = pd.concat([runs["test"], runs["validation"]]).dropna()
    return Unit(question.mode == "max" and bool(len(values)) and bool(values.between(0, 1).all()))


def judge(question: Question, summary: pd.DataFrame, unit: Unit) -> list[str]:
    """Return a sentence per method that is compared with the baseline."""
    baseline = question.baseline
    others = [method for method in summary.index if method != baseline]
    if not summary.loc[baseline, "seeds"]:
        return [f"No run of the baseline `{baseline}` was finished: nothing can be compared with it."]
    tested = int(summary.loc[others, "p"].notna().sum())
    return [_judge_one(summary.loc[method], str(method), question, unit, tested) for method in others]


def _judge_one(row: "pd.Series[Any]", method: str, question: Question, unit: Unit, tested: int) -> str:
    baseline, metric = question.baseline, question.test_monitor
    if not row["seeds"]:
        return f"`{method}`: no run was finished."
    count = int(row["paired"]) if pd.notna(row["paired"]) else 0
    if not count:
        return f"`{method}` has no seed in common with `{baseline}`: the two cannot be compared."
    difference = row["difference"]
    is_better = difference > 0 if question.mode == "max" else difference < 0
    size, sign = unit.difference(difference), "better" if is_better else "worse"
    seeds = "1 seed" if count == 1 else f"{count} seeds"
    if count < MIN_SEEDS:
        lead = f"{size} {sign}" if difference else "no different"
        few = {1: "one seed is", 2: "two seeds are"}[count]
        return f"`{method}` against `{baseline}`: {few} too few to tell ({lead} in {metric} with {seeds})."
    if pd.isna(row["p"]):
        return (
            f"`{method}` against `{baseline}`: all {seeds} differ by the same {size} ({sign} in {metric}), which leaves"
            " nothing to judge chance by."
        )
    if not difference:
        return f"`{method}` and `{baseline}` are the same in {metric} in all {seeds}."
    interval = _interval(row, unit)
    correction = f" after Holm's correction for {tested} comparisons" if tested > 1 else ""
    if row["p_holm"] < 0.05:
        return (
            f"`{method}` is {size} {sign} than `{baseline}` in {metric} (95% interval {interval}, {seeds},"
            f" p = {row['p_holm']:.2g}{correction})."
        )
    sentence = f"`{method}` and `{baseline}` cannot be told apart in {metric}"
    sentence += f" ({size} {sign}, 95% interval {interval}, {seeds}"
    if row["p"] < 0.05:
        sentence += f"; p = {row['p']:.2g} becomes {row['p_holm']:.2g}{correction}"
    needed = row["seeds_needed"]
    if pd.notna(needed) and count < needed <= _MANY_SEEDS:
        sentence += f"; to find a difference of this size takes about {int(needed)} seeds"
    elif pd.notna(needed) and needed > _MANY_SEEDS:
        sentence += f"; to find a difference of this size takes more than {_MANY_SEEDS} seeds"
    return sentence + ")."


def _interval(row: "pd.Series[Any]", unit: Unit) -> str:
    """Write the interval in the direction of the sentence, so that positive is what the sentence says."""
    low, high = row["difference_low"], row["difference_high"]
    if row["difference"] < 0:
        low, high = -high, -low
    return f"{100 * low:.1f} to {100 * high:.1f}" if unit.is_share else f"{low:.3g} to {high:.3g}"


def caveats(
    question: Question,
    summary: pd.DataFrame,
    edges: list[tuple[str, str, Any, str]],
    unequal: list[str],
    are_seeds_alike: bool,
) -> list[str]:
    """Return what a reader must know before believing the verdicts.

    Args:
        question: What was asked.
        summary: A row per method.
        edges: Selected values at an end of the sweep.
        unequal: What the methods did not share.
        are_seeds_alike: Whether the seeds made no difference to weights and batches.

    """
    found = []
    seeds = int(summary["seeds"].max())
    if 0 < seeds < MIN_SEEDS:
        number = {1: "One seed is", 2: "Two seeds are"}[seeds]
        found.append(f"{number} too few to tell differences from chance: take {MIN_SEEDS} at least, better 5 or more.")
    for (name, value, end), methods in _group_edges(edges).items():
        beyond, whose = "lower" if end == "lowest" else "higher", _enumerate([f"`{method}`" for method in methods])
        found.append(
            f"The best {name} of {whose}, {show_value(value)}, is the {end} of the sweep: the true best may be {beyond}"
            f" still, and the figures of a method be better there."
        )
    found += [f"Not the same for all methods: {what}." for what in unequal]
    if are_seeds_alike:
        found.append(
            "All seeds began with the same weights and saw the same batches: something in the module or the data sets"
            " its own seed, so that the runs repeat each other, and neither intervals nor verdicts mean anything."
        )
    failed = summary[summary["failed"] > 0]
    for method, row in failed.iterrows():
        runs = "1 run" if row["failed"] == 1 else f"{int(row['failed'])} runs"
        found.append(
            f"{runs} of `{method}` diverged or crashed (see `runs.csv`); settings without failures are preferred."
        )
    expected = len(question.seeds)
    for method, row in summary.iterrows():
        if 0 < row["seeds"] < expected:
            found.append(f"Of `{method}`, only {int(row['seeds'])} of {expected} seeds at the selected setting count.")
    return found


def _group_edges(edges: list[tuple[str, str, Any, str]]) -> dict[tuple[str, Any, str], list[str]]:
    grouped: dict[tuple[str, Any, str], list[str]] = {}
    for method, name, value, end in edges:
        grouped.setdefault((name, value, end), []).append(method)
    return grouped


def _enumerate(names: list[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
