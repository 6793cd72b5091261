"""Verdicts and caveats in sentences."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from lightning_znorm.compare.question.plan import shorten_keys
from lightning_znorm.compare.question.question import Question
from lightning_znorm.compare.question.syntax import format_value
from lightning_znorm.compare.report.formatting import align, as_code, clean, enumerate_names, format_count
from lightning_znorm.compare.report.statistics import MIN_SEEDS
from lightning_znorm.errors import join_names

_MANY_SEEDS = 200


@dataclass(frozen=True)
class Unit:
    """The format of a metric: shares of 1, of which more is better, in percent, others unchanged."""

    is_share: bool

    def format(self, value: float) -> str:
        """Format a value."""
        if math.isnan(value):
            return "–"
        return f"{100 * value:.1f}" if self.is_share else f"{value:.4g}"

    def format_column(self, values: Sequence[float]) -> list[str]:
        """Format values with the same number of decimals."""
        return [self.format(value) for value in values] if self.is_share else align(values)

    def format_interval(self, low: float, high: float) -> str:
        """Format an interval, that of a share between 0 and 1; empty if there is none."""
        if math.isnan(low):
            return ""
        if self.is_share:
            low, high = max(low, 0.0), min(high, 1.0)
        return f"{self.format(low)} to {self.format(high)}"

    def format_difference_interval(self, low: float, high: float) -> str:
        """Format the interval of a difference, empty if there is none."""
        if math.isnan(low):
            return ""
        return f"{100 * low:.1f} to {100 * high:.1f}" if self.is_share else f"{low:.3g} to {high:.3g}"

    def format_difference(self, value: float) -> str:
        """Format the size of a difference."""
        return f"{abs(100 * value):.1f} points" if self.is_share else f"{abs(value):.3g}"

    @property
    def heading(self) -> str:
        """Suffix of the metric's name."""
        return " (%)" if self.is_share else ""


def choose_unit(question: Question, runs: pd.DataFrame) -> Unit:
    """Treat a metric as a share if it is maximized and all its values are between 0 and 1."""
    values = pd.concat([runs["test"], runs["validation"]]).dropna()
    return Unit(question.mode == "max" and bool(len(values)) and bool(values.between(0, 1).all()))


@dataclass(frozen=True)
class Doubts:
    """Reasons why the comparison of a method with the baseline is not settled.

    Args:
        has_one_setting: Whether both have the same setting, which was not selected.
        ends: Best settings at an end of the sweep.
        failures: Methods with failed seeds.
        untrained: Methods without a training step.

    """

    has_one_setting: bool
    ends: list[str]
    failures: list[str]
    untrained: list[str]

    @property
    def reasons(self) -> list[str]:
        """All reasons, in words."""
        shared = ["both ran at one shared setting"] if self.has_one_setting else []
        return [*shared, *self.ends, *self.failures, *self.untrained]

    def qualify(self, sentence: str) -> str:
        """Add the reasons to a sentence."""
        if not self.reasons:
            return f"{sentence}."
        if self.has_one_setting and len(self.reasons) == 1:
            return f"At one shared setting, {sentence}; each method may do better at another."
        return f"Not settled, as {enumerate_names(self.reasons)}: {sentence}."


def describe_scope(question: Question) -> str:
    """Describe at which settings the methods are compared."""
    has_several = len(question.methods) > 1
    if not question.has_one_setting:
        method = "Each method" if has_several else "The method"
        return f"{method} is judged at its best setting by {as_code(question.monitor)} on the validation split."
    methods = "All methods ran at one shared setting, and each" if has_several else "The method ran at one setting, and"
    return f"{methods} may have a better one: sweep the learning rate (`--compare.sweep model.init_args.lr=…`)."


def make_verdicts(
    question: Question, summary: pd.DataFrame, unit: Unit, edges: Sequence[tuple[str, str, Any, str]]
) -> list[str]:
    """Return a sentence per method that is compared with the baseline."""
    baseline = question.baseline
    others = [method for method in summary.index if method != baseline]
    if not summary.loc[baseline, "seeds"]:
        return [f"No run of the baseline {as_code(baseline)} was finished: nothing can be compared with it."]
    tested = int(summary.loc[others, "p"].notna().sum())
    verdicts = []
    for method in others:
        doubts = _find_doubts(question, summary.loc[[baseline, method]], edges)
        verdicts.append(_make_verdict(summary.loc[method], question, unit, tested, doubts))
    return verdicts


def _find_doubts(question: Question, pair: pd.DataFrame, edges: Sequence[tuple[str, str, Any, str]]) -> Doubts:
    ends: dict[tuple[str, str], list[str]] = {}
    for method, key, _, end in edges:
        if method in pair.index:
            ends.setdefault((key, end), []).append(as_code(method))
    failed = pair[pair["seeds_failed"] > 0]
    untrained = [as_code(method) for method in pair.index[pair["steps"] == 0]]
    return Doubts(
        question.has_one_setting,
        [
            f"the best {clean(key)} of {enumerate_names(names)} is the {end} of the sweep"
            for (key, end), names in ends.items()
        ],
        [
            f"{as_code(method)} failed in {row['seeds_failed']:.0f} of {row['seeds_failed'] + row['seeds']:.0f} seeds"
            for method, row in failed.iterrows()
        ],
        [f"no training step was made by {enumerate_names(untrained)}"] if untrained else [],
    )


def _make_verdict(row: "pd.Series[Any]", question: Question, unit: Unit, tested: int, doubts: Doubts) -> str:
    method, baseline, metric = as_code(row.name), as_code(question.baseline), clean(question.test_monitor)
    if not row["seeds"]:
        return f"{method}: no run was finished."
    pairs = int(row["paired"]) if pd.notna(row["paired"]) else 0
    if not pairs:
        return f"{method} has no seed in common with {baseline}: the two cannot be compared."
    difference, seeds = row["difference"], format_count(pairs, "seed")
    size, sign = unit.format_difference(difference), _describe_sign(difference, question, unit)
    if pairs < MIN_SEEDS:
        result = f"{size} {sign}" if difference else "no difference"
        few = {1: "one seed is", 2: "two seeds are"}[pairs]
        remarks = "; ".join([f"{result} in {metric} with {seeds}", *doubts.reasons])
        return f"{method} against {baseline}: {few} too few to tell ({remarks})."
    if not difference:
        return doubts.qualify(f"{method} and {baseline} are the same in {metric} in all {seeds}")
    if doubts.failures:
        return doubts.qualify(f"in the {seeds} that both finished, {method} is {size} {sign} in {metric}")
    if pd.isna(row["p"]):
        return doubts.qualify(
            f"{method} differs from {baseline} by the same {size} in all {seeds} ({sign} in {metric}), so that no"
            " p-value can be computed"
        )
    low, high = row["difference_low"], row["difference_high"]  # of the size: the sentence has the sign
    interval = unit.format_difference_interval(*((low, high) if difference > 0 else (-high, -low)))
    correction = f" after Holm's correction for {tested} comparisons" if tested > 1 else ""
    if row["p_holm"] < 0.05:
        return doubts.qualify(
            f"{method} is {size} {sign} than {baseline} in {metric} (95% interval {interval}, {seeds},"
            f" p = {row['p_holm']:.2g}{correction})"
        )
    sentence = f"{method} and {baseline} do not differ measurably in {metric}"
    sentence += f" ({size} {sign}, 95% interval {interval}, {seeds}"
    if row["p"] < 0.05:
        sentence += f"; p = {row['p']:.2g} becomes {row['p_holm']:.2g}{correction}"
    needed = row["seeds_needed"]
    if pd.notna(needed) and needed > pairs:
        number = f"about {int(needed)}" if needed <= _MANY_SEEDS else f"more than {_MANY_SEEDS}"
        sentence += f"; to detect a difference of this size takes {number} seeds"
    return doubts.qualify(sentence + ")")


def _describe_sign(difference: float, question: Question, unit: Unit) -> str:
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
    """Return caveats about seeds, selection and failures."""
    caveats = []
    seeds = int(summary["seeds"].max())
    if 0 < seeds < MIN_SEEDS:
        number = {1: "One seed is", 2: "Two seeds are"}[seeds]
        caveats.append(f"{number} too few to tell differences from chance: use at least {MIN_SEEDS}, better 5 or more.")
    caveats += _describe_edges(question, edges) + _describe_ties(question, settings)
    for method, row in summary[summary["failed"] > 0].iterrows():
        statuses = set(runs.loc[runs["method"] == method, "status"])
        reason = "diverged, crashed or did not log the metric" if "not measured" in statuses else "diverged or crashed"
        caveats.append(
            f"{format_count(int(row['failed']), 'run')} of {as_code(method)} {reason} (see `runs.csv`)"
            + ("." if question.has_one_setting else "; settings without failures are preferred.")
        )
    expected = len(question.seeds)
    for method, row in summary.iterrows():
        if 0 < row["seeds"] < expected:
            where = "" if question.has_one_setting else " at the selected setting"
            caveats.append(f"Of {as_code(method)}, only {int(row['seeds'])} of {expected} seeds{where} count.")
    return caveats


def _describe_edges(question: Question, edges: Sequence[tuple[str, str, Any, str]]) -> list[str]:
    grouped: dict[tuple[str, Any, str], list[str]] = {}
    for method, key, value, end in edges:
        grouped.setdefault((key, value, end), []).append(as_code(method))
    caveats = [
        f"The best {clean(key)} of {enumerate_names(methods)}, {clean(format_value(value))}, is the {end} of the sweep."
        f" An even {'lower' if end == 'lowest' else 'higher'} value might do better: extend the sweep"
        f" {'downwards' if end == 'lowest' else 'upwards'}."
        for (key, value, end), methods in grouped.items()
    ]
    lengths = dict(zip(shorten_keys(question.sweep), map(len, question.sweep.values()), strict=True))
    short = [clean(key) for key in dict.fromkeys(key for key, *_ in grouped) if lengths[key] == 2]
    if short:
        caveats.append(f"A sweep of two values has only ends: take more values of {enumerate_names(short)}.")
    return caveats


def _describe_ties(question: Question, settings: pd.DataFrame) -> list[str]:
    caveats = []
    for method, rows in settings[settings["tied"]].groupby("method", sort=False):
        if len(rows) > 1:
            (selected,) = rows.loc[rows["selected"], "setting"]
            labels = [str(question.settings[number]) for number in rows["setting"]]
            caveats.append(
                f"{len(rows)} settings of {as_code(method)} are equally good in {as_code(question.monitor)}"
                f" ({clean(join_names(labels, 5))}); `{clean(str(question.settings[selected]))}` is selected."
            )
    return caveats
