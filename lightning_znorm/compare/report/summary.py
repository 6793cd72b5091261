"""The summary of a comparison: a row per method, with what the confirmation says of it."""

import math
from typing import Any

import numpy as np
import pandas as pd

from lightning_znorm.compare.question.candidates import RESOLUTION
from lightning_znorm.compare.question.question import Question
from lightning_znorm.compare.question.stages import Plan
from lightning_znorm.compare.report.inference import Judgement, judge
from lightning_znorm.compare.report.statistics import estimate_mean

_COLUMNS = [
    *("setting", "runs", "test", "test_low", "test_high", "answer", "pairs", "difference", "difference_low"),
    *("difference_high", "p", "p_holm", "p_equivalence", "probability", "probability_low", "probability_high"),
    *("pairs_needed", "validation", "steps_to_baseline", "seconds_to_baseline", "reached"),
    *("steps", "seconds_per_step", "seconds", "diverged", "crashed", "stopped_early"),
]
_FAILURES = ("diverged", "crashed")


def make_differences_table(question: Question, runs: pd.DataFrame) -> pd.DataFrame:
    """Return a row per pair: ``method``, ``seed``, ``difference`` (to the baseline, NaN for a run without one)."""
    confirmation = runs[runs["stage"] == "confirmation"]
    tests = confirmation.pivot(index="seed", columns="method", values="test")
    done = confirmation.pivot(index="seed", columns="method", values="status").notna()
    rows = [
        {"method": method, "seed": seed, "difference": tests.loc[seed, method] - tests.loc[seed, question.baseline]}
        for method in question.labels
        if method != question.baseline and {method, question.baseline} <= {*tests.columns}
        for seed in tests.index[done[method] & done[question.baseline]]
    ]
    return pd.DataFrame(rows, columns=["method", "seed", "difference"])


def judge_methods(question: Question, runs: pd.DataFrame, differences: pd.DataFrame) -> dict[str, Judgement]:
    """Judge each method that has pairs."""
    largest = runs["test"].abs().max()
    by_method = {
        str(method): group["difference"].tolist() for method, group in differences.groupby("method", sort=False)
    }
    rounding = RESOLUTION * largest if math.isfinite(largest) else 0.0
    return judge(by_method, question.margin, question.mode, rounding=rounding)


def make_summary(
    question: Question,
    plan: Plan,
    runs: pd.DataFrame,
    curves: pd.DataFrame,
    judgements: dict[str, Judgement],
    is_finished: bool,
) -> pd.DataFrame:
    """Return a row per method over its runs of the confirmation, in the order of the methods.

    Columns are ``setting``, ``runs``, ``test``, ``test_low``, ``test_high`` (mean and 95% interval of the test metric),
    ``answer`` (``None`` while runs are missing), ``pairs``, ``difference``, ``difference_low``, ``difference_high``,
    ``p``, ``p_holm``, ``p_equivalence``, ``probability``, ``probability_low``, ``probability_high``, ``pairs_needed``
    (of the differences to the baseline), ``validation``, ``steps_to_baseline`` and ``seconds_to_baseline`` (until the
    baseline's median final validation metric, medians over the runs, in which one that misses it counts as inf),
    ``reached`` (the number of runs that do not), ``steps``, ``seconds_per_step``, ``seconds`` (medians), ``diverged``,
    ``crashed`` and ``stopped_early`` (numbers of runs).
    """
    confirmation = runs[runs["stage"] == "confirmation"]
    goal = _find_goal(confirmation.loc[confirmation["method"] == question.baseline, "validation"], question)
    rows = []
    for method in question.labels:
        own = confirmation[confirmation["method"] == method]
        test = estimate_mean(own["test"].dropna().tolist())
        row: dict[str, Any] = {"method": method, "runs": len(own)}
        row["setting"] = str(plan.selected[method]) if method in plan.selected else None
        row |= {"test": test.mean, "test_low": test.low, "test_high": test.high, "validation": own["validation"].mean()}
        if method in judgements:
            row |= _describe_judgement(judgements[method], is_finished)
        if len(own) and math.isfinite(goal):
            row |= _find_time_to(goal, own, curves[curves["method"] == method], question)
        row |= {name: own[name].astype(float).median() for name in ("steps", "seconds_per_step", "seconds")}
        row |= {status: int((own["status"] == status).sum()) for status in _FAILURES}
        ended = own["ended"].dropna()
        row["stopped_early"] = int((~ended.isin(["max_steps", "max_epochs", "divergence"])).sum())
        rows.append(row)
    return pd.DataFrame(rows).set_index("method").reindex(columns=_COLUMNS)


def _describe_judgement(judgement: Judgement, is_finished: bool) -> dict[str, Any]:
    probability = judgement.probability
    return {
        "answer": judgement.answer if is_finished else None,
        "pairs": judgement.pairs,
        "difference": judgement.mean,
        "difference_low": judgement.low,
        "difference_high": judgement.high,
        **{name: getattr(judgement, name) for name in ("p", "p_holm", "p_equivalence", "pairs_needed")},
        "probability": probability.value,
        "probability_low": probability.low,
        "probability_high": probability.high,
    }


def _find_goal(metrics: "pd.Series[float]", question: Question) -> float:
    """Return the median, or the worse of two in the middle, so that more than half of the runs reach it."""
    ordered = sorted(metrics.dropna(), reverse=question.mode == "max")
    return float(ordered[len(ordered) // 2]) if ordered else math.nan


def _find_time_to(goal: float, runs: pd.DataFrame, curves: pd.DataFrame, question: Question) -> dict[str, Any]:
    slack = RESOLUTION * abs(goal)
    has_reached = curves["value"] >= goal - slack if question.mode == "max" else curves["value"] <= goal + slack
    first = curves[has_reached].groupby("seed")["step"].min().reindex(runs["seed"], fill_value=math.inf)
    seconds = first.to_numpy() * runs["seconds_per_step"].astype(float).to_numpy()
    return {
        "steps_to_baseline": float(np.median(first)),
        "seconds_to_baseline": float(np.median(seconds)),
        "reached": int(np.isfinite(first).sum()),
    }


def find_good_range(question: Question, trials: pd.DataFrame, method: str) -> pd.DataFrame:
    """Return the trials of a method beside its selected one whose mean is nearly as good.

    That is within the margin, or else within a tenth of the spread of all trials.
    """
    sign = 1 if question.mode == "max" else -1
    scores = sign * trials["mean"]
    tolerance = question.margin if question.margin is not None else 0.1 * (scores.max() - scores.min())
    own = trials[trials["method"] == method].assign(_score=scores)
    if not own["selected"].any():
        return own.iloc[:0]
    is_good = (own["_score"] >= own.loc[own["selected"], "_score"].iloc[0] - tolerance).to_numpy()
    place = int(own["selected"].to_numpy().argmax())
    first, last = place, place
    while first > 0 and is_good[first - 1]:
        first -= 1
    while last + 1 < len(own) and is_good[last + 1]:
        last += 1
    return own.iloc[first : last + 1].drop(columns="_score")
