"""The answer to a question, in sentences."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from lightning_znorm.compare.question.pairs import count_least_pairs
from lightning_znorm.compare.question.question import Question
from lightning_znorm.compare.question.stages import Plan
from lightning_znorm.compare.report.formatting import as_code, clean, enumerate_names, format_count
from lightning_znorm.compare.report.units import Unit

_MANY_PAIRS = 500
_LONGEST_TITLE = 60  # characters
_FAILURES = {"diverged": "diverged", "crashed": "crashed", "not measured": "did not log the metric"}


@dataclass(frozen=True)
class Verdict:
    """The comparison of a method with the baseline.

    Attributes:
        method: Label of the method.
        answer: ``"better"``, ``"worse"``, ``"equivalent"``, ``"undecided"``, or ``"unfinished"``.
        sentence: The answer with its figures.

    """

    method: str
    answer: str
    sentence: str


def ask(question: Question) -> str:
    """Return the question as a title."""
    others = [label for label in question.labels if label != question.baseline]
    if not others:
        return f"How good is {clean(question.baseline)} in {clean(question.test_monitor)}?"
    names = enumerate_names(list(map(clean, others)))
    if len(names) > _LONGEST_TITLE and len(others) > 1:
        names = f"these {len(others)} gradient transforms"
    return f"{'Does' if len(others) == 1 else 'Do'} {names} beat {clean(question.baseline)}?"


def answer(question: Question, verdicts: Sequence[Verdict]) -> str:
    """Return the answers of all methods in one sentence."""
    baseline = as_code(question.baseline)
    if not verdicts:
        return "There is one method, and nothing to compare it with."
    words = {
        "better": f"better than {baseline}",
        "worse": f"worse than {baseline}",
        "equivalent": f"equivalent to {baseline} within the margin",
    }
    parts = []
    for name in ("better", "worse", "equivalent", "undecided", "unfinished", "unknown"):
        methods = [as_code(verdict.method) for verdict in verdicts if verdict.answer == name]
        if not methods:
            continue
        verb = "is" if len(methods) == 1 else "are"
        if name in words:
            parts.append(f"{enumerate_names(methods)} {verb} {words[name]}")
        elif name == "undecided":
            parts.append(f"whether {enumerate_names(methods)} {verb} better or worse is undecided")
        elif name == "unfinished":
            parts.append(f"for {enumerate_names(methods)} the runs are not finished")
        else:
            parts.append(f"{enumerate_names(methods)} could not be compared")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def describe_scope(question: Question) -> str:
    """Describe at which settings the methods are compared."""
    has_several = len(question.methods) > 1
    if not question.has_one_setting:
        method = "Each method" if has_several else "The method"
        return f"{method} is judged at its best setting by {as_code(question.monitor)} on the validation split."
    if not has_several:
        methods = "The method ran at one setting, and"
    elif question.has_shared_setting:
        methods = "All methods ran at one shared setting, and each"
    else:
        methods = "Each method ran at the one setting that was given for it, and"
    return f"{methods} may have a better one: sweep the learning rate (`--compare.sweep lr=auto`)."


def make_verdicts(
    question: Question, plan: Plan, runs: pd.DataFrame, summary: pd.DataFrame, unit: Unit, trials: pd.DataFrame
) -> list[Verdict]:
    """Return a verdict per method that is compared with the baseline."""
    others = [method for method in question.labels if method != question.baseline]
    if plan.is_complete and question.baseline not in plan.selected:
        reason = _explain_no_setting(question, question.baseline, trials)
        return [
            Verdict(
                method, "unknown", f"{as_code(method)} cannot be compared with {as_code(question.baseline)}: {reason}."
            )
            for method in others
        ]
    tested = int(summary.loc[others, "p"].notna().sum())
    verdicts = []
    for method in others:
        if plan.is_complete and method not in plan.selected:
            reason = _explain_no_setting(question, method, trials)
            verdicts.append(Verdict(method, "unknown", f"{as_code(method)}: {reason}."))
            continue
        doubts = _find_doubts(question, plan, summary.loc[[question.baseline, method]])
        row: pd.Series[Any] = summary.loc[summary.index == method].iloc[0]
        lost = _describe_lost(question, runs, [question.baseline, method])
        verdicts.append(_make_verdict(row, question, plan, unit, tested, doubts, lost))
    return verdicts


def _explain_no_setting(question: Question, method: str, trials: pd.DataFrame) -> str:
    own = trials[trials["method"] == method]
    settings = own["setting"].tolist()
    tried = f"{clean(settings[0])} to {clean(settings[-1])}" if len(settings) > 1 else clean("".join(settings))
    return (
        f"none of {format_count(len(settings), 'setting')} of {as_code(method)} ({tried}) has a finite"
        f" {as_code(question.monitor)}, so that none could be selected"
    )


def _find_doubts(question: Question, plan: Plan, pair: pd.DataFrame) -> list[str]:
    """Return why the settings, or the runs, of a method and the baseline are in doubt."""
    doubts = []
    if question.has_one_setting:
        doubts.append("both ran at one shared setting" if question.has_shared_setting else "no setting was selected")
    unsettled = [
        f"{as_code(method)} ({clean(str(plan.selected[str(method)]))})"
        for method in pair.index
        if method in plan.unsettled
    ]
    if unsettled:
        doubts.append(f"the selected setting of {enumerate_names(unsettled)} is at an end of what was tried")
    untrained = [as_code(method) for method in pair.index[pair["steps"] == 0]]
    if untrained:
        doubts.append(f"no training step was made by {enumerate_names(untrained)}")
    return doubts


def _qualify(sentence: str, doubts: Sequence[str]) -> str:
    return f"{sentence}. Not settled, as {enumerate_names(doubts)}." if doubts else f"{sentence}."


def _make_verdict(
    row: "pd.Series[Any]",
    question: Question,
    plan: Plan,
    unit: Unit,
    tested: int,
    doubts: Sequence[str],
    lost: Sequence[str],
) -> Verdict:
    method, baseline, metric = str(row.name), as_code(question.baseline), clean(question.test_monitor)
    name = as_code(method)
    pairs = int(row["pairs"]) if pd.notna(row["pairs"]) else 0
    answer = row["answer"] if isinstance(row["answer"], str) else "unfinished"
    if answer == "unfinished":
        so_far = f": so far, it is {_describe_difference(row, question, unit)} in {metric}" if pairs else ""
        planned = f" of {plan.pairs}" if plan.is_complete else ""
        counted = f"{pairs}{planned} pairs are done{so_far}" if pairs else "no pair is done yet"
        return Verdict(method, answer, f"{name} against {baseline}: {counted}; the answer comes with the last one.")
    if math.isnan(row["p"]):
        sentence = f"{name} against {baseline} is undecided, as {enumerate_names(lost)}: a pair needs both metrics"
        return Verdict(method, answer, _qualify(sentence, doubts))
    figures = f"95% interval {unit.format_difference_interval(row['difference_low'], row['difference_high'])}"
    figures += f", {format_count(pairs, 'pair')}, {_format_p(row, tested)}"
    difference = _describe_difference(row, question, unit)
    margin = "" if question.margin is None else unit.format_difference(question.margin)
    if answer in ("better", "worse"):
        sentence = f"{name} is {answer} than {baseline}: {difference} in {metric} ({figures})"
    elif answer == "equivalent":
        sentence = (
            f"{name} is equivalent to {baseline} within the margin of {margin}: {difference} in {metric} ({figures},"
            f" p = {row['p_equivalence']:.2g} for equivalence)"
        )
    else:
        sentence = f"{name} against {baseline} is undecided: {difference} in {metric} ({figures})"
        sentence += _describe_needed(row, margin, pairs, tested)
    return Verdict(method, answer, _qualify(sentence, doubts))


def _describe_needed(row: "pd.Series[Any]", margin: str, pairs: int, tested: int) -> str:
    if not margin:
        return ". How many pairs would decide depends on the smallest difference that matters: give `--compare.margin`"
    if pd.isna(row["pairs_needed"]):
        return ""
    needed = int(row["pairs_needed"])
    number = f"about {needed}" if needed <= _MANY_PAIRS else f"more than {_MANY_PAIRS}"
    if needed <= pairs:
        return f". {pairs} pairs are enough to decide a margin of {margin} four times out of five: here they did not"
    return f". To decide a margin of {margin} takes {number} pairs"


def _describe_difference(row: "pd.Series[Any]", question: Question, unit: Unit) -> str:
    difference = row["difference"]
    if not difference:
        return "the same"
    is_better = difference > 0 if question.mode == "max" else difference < 0
    sign = "better" if is_better else "worse"
    direction = "" if unit.is_share else f" ({'higher' if difference > 0 else 'lower'})"
    return f"{unit.format_difference(difference)} {sign}{direction}"


def _format_p(row: "pd.Series[Any]", tested: int) -> str:
    return f"p = {row['p_holm']:.2g}" + (f" after Holm's correction for {tested} comparisons" if tested > 1 else "")


def _describe_lost(question: Question, runs: pd.DataFrame, methods: Sequence[str]) -> list[str]:
    """Describe the confirming runs of methods that have no metric."""
    lost = runs[(runs["stage"] == "confirmation") & runs["test"].isna()]
    descriptions = []
    for method in methods:
        own = lost[lost["method"] == method]
        if len(own):
            reasons = ", ".join(dict.fromkeys(own["status"]))
            verb = "has" if len(own) == 1 else "have"
            metric = as_code(question.test_monitor)
            descriptions.append(f"{format_count(len(own), 'run')} of {as_code(method)} {verb} no {metric} ({reasons})")
    return descriptions


def find_changes(question: Question, planned: Mapping[str, Any]) -> list[str]:
    """Return caveats about an analysis that was changed after the first runs."""
    now = {"pairs": question.design.pairs, "width": question.design.width, "margin": question.margin}
    if now["width"] is not None and planned.get("width") is not None:
        del now["pairs"]
    changes = [
        f"`{name}` from {planned[name]} to {value}"
        for name, value in now.items()
        if name in planned and planned[name] != value
    ]
    if not changes:
        return []
    return [
        f"The analysis was changed after the first runs ({'; '.join(changes)}): its error rates hold for one that is"
        " fixed beforehand."
    ]


def find_caveats(question: Question, plan: Plan, runs: pd.DataFrame, summary: pd.DataFrame) -> list[str]:
    """Return caveats about selection, failures and the number of pairs."""
    caveats = []
    for label, setting in plan.selected.items():
        if label in plan.unsettled:
            caveats.append(
                f"The selected setting of {as_code(label)}, {clean(str(setting))}, is at an end of what was tried: a"
                " better one may be beyond it. Extend the sweep, or give more `--compare.trials`."
            )
    for method in question.labels:
        own = runs[runs["method"] == method]
        for stage in ("selection", "confirmation"):
            bad = own[(own["stage"] == stage) & (own["status"] != "finished")]
            if len(bad):
                reasons = enumerate_names([_FAILURES[status] for status in dict.fromkeys(bad["status"])])
                caveats.append(
                    f"{len(bad)} of {int((own['stage'] == stage).sum())} runs of {as_code(method)} in the"
                    f" {stage} {reasons} (see `runs.csv`)."
                )
    stopped = [
        f"{int(row['stopped_early'])} of {as_code(method)}"
        for method, row in summary.iterrows()
        if row["stopped_early"]
    ]
    if stopped:
        caveats.append(f"Runs of the confirmation that stopped early: {enumerate_names(stopped)}.")
    comparisons = len(question.methods) - 1
    if comparisons > 0 and question.design.least_pairs < count_least_pairs(comparisons=comparisons):
        caveats.append("There are too few pairs for the number of methods: no test can show a difference.")
    return caveats
