"""Tables of runs, trials and curves."""

import math
from collections.abc import Container, Sequence
from typing import Any

import pandas as pd

from lightning_znorm.compare.question.question import Question
from lightning_znorm.compare.question.stages import Plan
from lightning_znorm.compare.runs.result import RunResult

_TRIALS = ["method", "setting", "number", "mean", "low", "high", "seeds", "failed", "selected", "unsettled"]


def make_runs_table(question: Question, results: Sequence[RunResult]) -> pd.DataFrame:
    """Return a row per run.

    Columns are ``method``, the swept keys (with the prefix ``sweep.`` if another column has that name), ``stage``
    (``"selection"`` or ``"confirmation"``), ``seed``, ``status``, ``validation`` and ``test`` (the monitored metrics,
    as last logged), ``train_loss``, ``epochs``, ``steps``, ``ended``, ``seconds``, ``seconds_per_step``, ``resumed``,
    ``device``, ``threads``, ``weights_hash``, ``batches_hash``, ``error``, versions, ``commit`` and ``dirty`` of this
    package, all test metrics (with the prefix ``metric.`` if another column has that name), and ``setting`` and
    ``number``, text and place of the setting.
    """
    rows = [_make_row(question, result) for result in results]
    frame = pd.DataFrame(rows)
    numbers = ["validation", "test", "train_loss", "seconds", "seconds_per_step"]
    frame = frame.astype(dict.fromkeys(numbers, float))
    frame["setting"] = [str(result.run.setting) for result in results]
    frame["number"] = [result.run.setting.number for result in results]
    for position, key in enumerate(question.keys, start=1):
        values = [result.run.setting.values.get(key) for result in results]
        frame.insert(position, name_key_column(key, frame), pd.Series(values, dtype=object))
    metrics = {
        name_metric_column(name, frame): pd.Series([result.test.get(name) for result in results], dtype=float)
        for name in list_metrics(results)
    }
    return pd.concat([frame, pd.DataFrame(metrics, index=frame.index)], axis=1)


def _make_row(question: Question, result: RunResult) -> dict[str, Any]:
    versions = result.versions
    return {
        "method": result.run.method.label,
        "stage": "selection" if question.is_selection(result.run.seed) else "confirmation",
        "seed": result.run.seed,
        "status": _find_status(result, question),
        "validation": result.get_validation(question.monitor),
        "test": result.get_test(question.test_monitor),
        "train_loss": next(iter(reversed(result.train_loss)), None),
        "epochs": result.epochs,
        "steps": result.steps,
        "ended": result.ended,
        "seconds": result.seconds.all if result.seconds else None,
        "seconds_per_step": result.seconds.step if result.seconds else None,
        "resumed": result.resumed,
        "device": result.device,
        "threads": result.threads,
        "weights_hash": result.weights_hash[:16],
        "batches_hash": result.batches_hash[:16],
        "error": ((result.error or "").splitlines() or [""])[0],
        "lightning-znorm": versions.get("lightning-znorm"),
        "commit": result.commit,
        "dirty": result.dirty,
        "torch": versions.get("torch"),
        "lightning": versions.get("lightning", versions.get("pytorch-lightning")),
    }


def list_metrics(results: Sequence[RunResult]) -> list[str]:
    """Return the names of all test metrics, in the order in which they were logged."""
    return list(dict.fromkeys(name for result in results for name in result.test))


def name_key_column(key: str, columns: Container[str]) -> str:
    """Return the name of a swept key's column that is none of some others."""
    return f"sweep.{key}" if key in columns else key


def list_key_columns(trials: pd.DataFrame) -> list[str]:
    """Return the columns of the swept keys in the table of trials."""
    return [*trials.columns[len(_TRIALS) :]]


def name_metric_column(metric: str, columns: Container[str]) -> str:
    """Return the name of a metric's column that is none of some others."""
    return f"metric.{metric}" if metric in columns else metric


def make_metrics_table(question: Question, results: Sequence[RunResult]) -> pd.DataFrame:
    """Return the means of the other test metrics over confirming runs, a row per method."""
    metrics = [metric for metric in list_metrics(results) if metric != question.test_monitor]
    rows = {}
    for method in question.labels:
        tests = [result.test for result in results if result.run.method.label == method and result.test]
        if tests:
            rows[method] = pd.DataFrame(tests, columns=metrics, dtype=float).mean().to_dict()
    return pd.DataFrame.from_dict(rows, orient="index", columns=metrics)


def make_curves_table(question: Question, results: Sequence[RunResult]) -> pd.DataFrame:
    """Return a row per validation of confirming runs: ``method``, ``seed``, ``epoch``, ``step``, ``value``."""
    points = [
        {**_identify(result), "epoch": row.epoch, "step": row.step, "value": row.metrics[question.monitor]}
        for result in results
        for row in result.find_validations(question.monitor)
    ]
    return _make_curves(points)


def make_losses_table(results: Sequence[RunResult]) -> pd.DataFrame:
    """Return a row per epoch of confirming runs, with the columns of the curves; the value is the training loss."""
    points = [
        {**_identify(result), "epoch": epoch, "value": value}
        for result in results
        for epoch, value in enumerate(result.train_loss, start=1)
    ]
    return _make_curves(points)


def choose_axis(curves: pd.DataFrame) -> str:
    """Return ``"epoch"``, or ``"step"`` if epochs are unknown or have several validations."""
    duplicates = curves.duplicated(["method", "seed", "epoch"])
    return "step" if curves["epoch"].isna().any() or duplicates.any() else "epoch"


def make_trials_table(question: Question, runs: pd.DataFrame, plan: Plan) -> pd.DataFrame:
    """Return a row per method and setting that was tried in the selection, in the order of methods and settings.

    Columns are ``method``, ``setting``, ``number`` (its place), ``mean``, ``low``, ``high`` of the validation metric
    (the range of the seeds; NaN if a run has no metric), ``seeds``, ``failed`` (runs without a metric), ``selected``,
    ``unsettled`` (whether a better setting may be beyond the selected one), and the swept keys after these.
    """
    columns = [*runs.columns[1 : 1 + len(question.keys)]]
    rows = []
    selection = runs[runs["stage"] == "selection"]
    for (method, setting), group in selection.groupby(["method", "setting"], sort=False):
        values = group["validation"]
        is_selected = str(plan.selected.get(str(method))) == setting
        row = {
            "method": method,
            "setting": setting,
            "number": group["number"].iloc[0],
            "mean": values.mean(skipna=False),
            "low": values.min(skipna=False),
            "high": values.max(skipna=False),
            "seeds": len(group),
            "failed": int(values.isna().sum()),
            "selected": is_selected,
            "unsettled": is_selected and method in plan.unsettled,
        }
        rows.append(row | {column: group[column].iloc[0] for column in columns})
    frame = pd.DataFrame(rows, columns=[*_TRIALS, *columns])
    places = frame.assign(_method=frame["method"].map(question.labels.index))
    return frame.loc[places.sort_values(["_method", "number"]).index].reset_index(drop=True)


def _identify(result: RunResult) -> dict[str, Any]:
    return {"method": result.run.method.label, "seed": result.run.seed}


def _make_curves(points: list[dict[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(points, columns=["method", "seed", "epoch", "step", "value"])
    frame = frame.astype({"epoch": float, "step": float, "value": float})
    return frame.assign(value=frame["value"].where(frame["value"].abs() < math.inf))


def _find_status(result: RunResult, question: Question) -> str:
    """Return the status; a run with an inf or NaN metric has diverged, too."""
    if result.status != "finished":
        return result.status
    if not result.find_validations(question.monitor) or question.test_monitor not in result.test:
        return "not measured"
    metrics = result.get_validation(question.monitor), result.get_test(question.test_monitor)
    return "diverged" if any(map(math.isnan, metrics)) else "finished"
