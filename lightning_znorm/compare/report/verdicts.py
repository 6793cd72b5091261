"""What the results mean, in sentences."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from lightning_znorm.compare.question.plan import short_names
from lightning_znorm.compare.question.question import Question
from lightning_znorm.compare.question.syntax import format_value
from lightning_znorm.compare.report.formatting import align, as_code, clean, format_count, join_names
from lightning_znorm.compare.report.statistics import MIN_SEEDS
from lightning_znorm.errors import listing

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

    def column(self, values: Sequence[float]) -> list[str]:
        """Write metrics with equally many decimals."""
        return [self.value(value) for value in values] if self.is_share else align(values)

    def interval(self, low: float, high: float) -> str:
        """Write an interval of the metric, without what a share cannot be; nothing if there is none."""
        if math.isnan(low):
            return ""
        if self.is_share:
            low, high = max(low, 0.0), min(high, 1.0)
        return f"{self.value(low)} to {self.value(high)}"

    def interval_of_difference(self, low: float, high: float) -> str:
        """Write an interval of a difference, nothing if there is none."""
        if math.isnan(low):
            return ""
        return f"{100 * low:.1f} to {100 * high:.1f}" if self.is_share else f"{low:.3g} to {high:.3g}"

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


@dataclass(frozen=True)
class Doubts:
    """Why a method and the baseline may compare otherwise than it seems.

    Args:
        is_shared: Whether both have the same setting, which was not selected.
        ends: Which of their best settings are ends of the sweep, in words.
        failures: Which of them has lost seeds, in words.
        untrained: Which of them made no step, in words.

    """

    is_shared: bool
    ends: list[str]
    failures: list[str]
    untrained: list[str]

    @property
    def reasons(self) -> list[str]:
        """All of them."""
        shared = ["both ran at one shared setting"] if self.is_shared else []
        return [*shared, *self.ends, *self.failures, *self.untrained]

    def qualify(self, sentence: str) -> str:
        """Add to a sentence what keeps it from being settled."""
        if not self.reasons:
            return f"{sentence}."
        if self.is_shared and len(self.reasons) == 1:
            return f"At one shared setting, {sentence}; each method may do better at another."
        return f"Not settled, as {join_names(self.reasons)}: {sentence}."


def describe_scope(question: Question) -> str:
    """Say at which settings the methods are compared."""
    several = len(question.methods) > 1
    if not question.is_shared:
        who = "Each method" if several else "The method"
        return f"{who} is judged at its best setting by {as_code(question.monitor)} on the validation split."
    who = "All methods ran at one shared setting, and each" if several else "The method ran at one setting, and"
    return f"{who} may have a better one: sweep the learning rate (`--compare.sweep model.init_args.lr=…`)."


def make_verdicts(
    question: Question, summary: pd.DataFrame, unit: Unit, edges: Sequence[tuple[str, str, Any, str]]
) -> list[str]:
    """Return a sentence per method that is compared with the baseline."""
    baseline = question.baseline
    others = [method for method in summary.index if method != baseline]
    if not summary.loc[baseline, "seeds"]:
        return [f"No run of the baseline {as_code(baseline)} was finished: nothing can be compared with it."]
    tested = int(summary.loc[others, "p"].notna().sum())
    doubts = {method: _find_doubts(summary.loc[[baseline, method]], edges, question.is_shared) for method in others}
    return [_judge_one(summary.loc[method], question, unit, tested, doubts[method]) for method in others]


def _find_doubts(pair: pd.DataFrame, edges: Sequence[tuple[str, str, Any, str]], is_shared: bool) -> Doubts:
    ends: dict[tuple[str, str], list[str]] = {}
    for method, key, _, end in edges:
        if method in pair.index:
            ends.setdefault((key, end), []).append(as_code(method))
    lost = pair[pair["seeds_failed"] > 0]
    untrained = [as_code(method) for method in pair.index[pair["steps"] == 0]]
    return Doubts(
        is_shared,
        [f"the best {clean(key)} of {join_names(who)} is the {end} of the sweep" for (key, end), who in ends.items()],
        [
            f"{as_code(method)} failed in {row['seeds_failed']:.0f} of {row['seeds_failed'] + row['seeds']:.0f} seeds"
            for method, row in lost.iterrows()
        ],
        [f"no training step was made by {join_names(untrained)}"] if untrained else [],
    )


def _judge_one(row: "pd.Series[Any]", question: Question, unit: Unit, tested: int, doubts: Doubts) -> str:
    method, baseline, metric = as_code(row.name), as_code(question.baseline), clean(question.test_monitor)
    if not row["seeds"]:
        return f"{method}: no run was finished."
    pairs = int(row["paired"]) if pd.notna(row["paired"]) else 0
    if not pairs:
        return f"{method} has no seed in common with {baseline}: the two cannot be compared."
    difference, seeds = row["difference"], format_count(pairs, "seed")
    size, sign = unit.difference(difference), _show_sign(difference, question, unit)
    if pairs < MIN_SEEDS:
        lead = f"{size} {sign}" if difference else "no different"
        few = {1: "one seed is", 2: "two seeds are"}[pairs]
        notes = "; ".join([f"{lead} in {metric} with {seeds}", *doubts.reasons])
        return f"{method} against {baseline}: {few} too few to tell ({notes})."
    if not difference:
        return doubts.qualify(f"{method} and {baseline} are the same in {metric} in all {seeds}")
    if doubts.failures:
        return doubts.qualify(f"in the {seeds} that both finished, {method} is {size} {sign} in {metric}")
    if pd.isna(row["p"]):
        return doubts.qualify(
            f"{method} differs from {baseline} by the same {size} in all {seeds} ({sign} in {metric}), which leaves"
            " nothing to judge chance by"
        )
    ends = row["difference_low"], row["difference_high"]  # in the direction of the sentence: positive is what it says
    interval = unit.interval_of_difference(*ends) if difference > 0 else unit.interval_of_difference(-ends[1], -ends[0])
    correction = f" after Holm's correction for {tested} comparisons" if tested > 1 else ""
    if row["p_holm"] < 0.05:
        return doubts.qualify(
            f"{method} is {size} {sign} than {baseline} in {metric} (95% interval {interval}, {seeds},"
            f" p = {row['p_holm']:.2g}{correction})"
        )
    sentence = f"{method} and {baseline} cannot be told apart in {metric}"
    sentence += f" ({size} {sign}, 95% interval {interval}, {seeds}"
    if row["p"] < 0.05:
        sentence += f"; p = {row['p']:.2g} becomes {row['p_holm']:.2g}{correction}"
    needed = row["seeds_needed"]
    if pd.notna(needed) and pairs < needed <= _MANY_SEEDS:
        sentence += f"; to find a difference of this size takes about {int(needed)} seeds"
    elif pd.notna(needed) and needed > _MANY_SEEDS:
        sentence += f"; to find a difference of this size takes more than {_MANY_SEEDS} seeds"
    return doubts.qualify(sentence + ")")


def _show_sign(difference: float, question: Question, unit: Unit) -> str:
    is_better = difference > 0 if question.mode == "max" else difference < 0
    sign = "better" if is_better else "worse"
    return sign if unit.is_share else f"{sign} ({'higher' if difference > 0 else 'lower'})"


def find_caveats(
    question: Question,
    runs: pd.DataFrame,
    settings: pd.DataFrame,
    summary: pd.DataFrame,
    edges: Sequence[tuple[str, str, Any, str]],
) -> list[str]:
    """Return what a reader must know of seeds, selection and failures before believing the verdicts.

    Args:
        question: What was asked.
        runs: A row per run.
        settings: A row per method and setting.
        summary: A row per method.
        edges: Best values at an end of the sweep.

    """
    notes = []
    seeds = int(summary["seeds"].max())
    if 0 < seeds < MIN_SEEDS:
        number = {1: "One seed is", 2: "Two seeds are"}[seeds]
        notes.append(f"{number} too few to tell differences from chance: take {MIN_SEEDS} at least, better 5 or more.")
    notes += _describe_edges(question, edges) + _describe_ties(question, settings)
    for method, row in summary[summary["failed"] > 0].iterrows():
        statuses = set(runs.loc[runs["method"] == method, "status"])
        reason = "diverged, crashed or did not log the metric" if "not measured" in statuses else "diverged or crashed"
        notes.append(
            f"{format_count(int(row['failed']), 'run')} of {as_code(method)} {reason} (see `runs.csv`)"
            + ("." if question.is_shared else "; settings without failures are preferred.")
        )
    expected = len(question.seeds)
    for method, row in summary.iterrows():
        if 0 < row["seeds"] < expected:
            where = "" if question.is_shared else " at the selected setting"
            notes.append(f"Of {as_code(method)}, only {int(row['seeds'])} of {expected} seeds{where} count.")
    return notes


def _describe_edges(question: Question, edges: Sequence[tuple[str, str, Any, str]]) -> list[str]:
    grouped: dict[tuple[str, Any, str], list[str]] = {}
    for method, key, value, end in edges:
        grouped.setdefault((key, value, end), []).append(as_code(method))
    notes = [
        f"The best {clean(key)} of {join_names(methods)}, {clean(format_value(value))}, is the {end} of the sweep."
        f" An even {'lower' if end == 'lowest' else 'higher'} value might do better: extend the sweep"
        f" {'downwards' if end == 'lowest' else 'upwards'}."
        for (key, value, end), methods in grouped.items()
    ]
    lengths = dict(zip(short_names(question.sweep), map(len, question.sweep.values()), strict=True))
    short = [clean(key) for key in dict.fromkeys(key for key, *_ in grouped) if lengths[key] == 2]
    if short:
        notes.append(f"A sweep of two values has only ends: take more values of {join_names(short)}.")
    return notes


def _describe_ties(question: Question, settings: pd.DataFrame) -> list[str]:
    notes = []
    for method, rows in settings[settings["tied"]].groupby("method", sort=False):
        if len(rows) > 1:
            (selected,) = rows.loc[rows["selected"], "setting"]
            labels = [str(question.settings[number]) for number in rows["setting"]]
            notes.append(
                f"{len(rows)} settings of {as_code(method)} are equally good in {as_code(question.monitor)}"
                f" ({clean(listing(labels, 5))}); `{clean(str(question.settings[selected]))}` is taken."
            )
    return notes
