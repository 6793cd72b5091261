"""Tables of runs and methods."""

import math
from collections.abc import Container, Sequence
from typing import Any

import pandas as pd

from lightning_znorm.compare.question.candidates import RESOLUTION, are_numbers
from lightning_znorm.compare.question.plan import shorten_keys
from lightning_znorm.compare.question.question import Question
from lightning_znorm.compare.report.statistics import Difference, differences_to, estimate_mean
from lightning_znorm.compare.runs.result import RunResult

_SUMMARY = [
    *("setting", "seeds", "test", "test_low", "test_high", "difference", "difference_low", "difference_high", "paired"),
    *("p", "p_holm", "seeds_needed", "validation", "epochs_to_baseline", "steps_to_baseline", "reached"),
    *("steps", "seconds_per_step", "seconds", "seeds_failed", "failed"),
]


def make_runs_table(question: Question, results: Sequence[RunResult]) -> pd.DataFrame:
    """Return a row per run.

    Columns are ``method``, the swept keys (with the prefix ``sweep.`` if another column has that name), ``seed``,
    ``status``, ``validation`` and ``test`` (the monitored metrics, as last logged), ``train_loss``, ``epochs``,
    ``steps``, ``ended``, ``seconds``, ``seconds_per_step``, ``resumed``, ``device``, ``weights_hash``,
    ``batches_hash``, ``error``, versions, ``commit`` and ``dirty`` of this package, all test metrics (with the prefix
    ``metric.`` if another column has that name), and the number of the ``setting``.
    """
    rows = [_make_row(question, result) for result in results]
    frame = pd.DataFrame(rows)
    numbers = ["validation", "test", "train_loss", "seconds", "seconds_per_step"]
    frame = frame.astype(dict.fromkeys(numbers, float)).assign(
        setting=[result.run.setting.number for result in results]
    )
    for position, key in enumerate(question.sweep, start=1):
        name = f"sweep.{key}" if key in frame else key
        frame.insert(position, name, pd.Series([result.run.setting.values[key] for result in results], dtype=object))
    metrics = {
        name_metric_column(name, frame): pd.Series([result.test.get(name) for result in results], dtype=float)
        for name in list_metrics(results)
    }
    return pd.concat([frame, pd.DataFrame(metrics, index=frame.index)], axis=1)


def _make_row(question: Question, result: RunResult) -> dict[str, Any]:
    logged = result.find_validations(question.monitor)
    versions = result.versions
    return {
        "method": result.run.method.label,
        "seed": result.run.seed,
        "status": _find_status(result, question),
        "validation": _drop_nonfinite(logged[-1].metrics[question.monitor]) if logged else None,
        "test": _drop_nonfinite(result.test.get(question.test_monitor)),
        "train_loss": next(iter(reversed(result.train_loss)), None),
        "epochs": result.epochs,
        "steps": result.steps,
        "ended": result.ended,
        "seconds": result.seconds.all if result.seconds else None,
        "seconds_per_step": result.seconds.step if result.seconds else None,
        "resumed": result.resumed,
        "device": result.device,
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


def name_metric_column(metric: str, columns: Container[str]) -> str:
    """Return the name of a metric's column that is none of some others."""
    return f"metric.{metric}" if metric in columns else metric


def make_metrics_table(question: Question, results: Sequence[RunResult], summary: pd.DataFrame) -> pd.DataFrame:
    """Return the means of the other test metrics, a row per method at its selected setting."""
    metrics = [metric for metric in list_metrics(results) if metric != question.test_monitor]
    rows = {}
    for method, setting in summary.loc[summary["seeds"] > 0, "setting"].items():
        tests = [
            result.test
            for result in results
            if (result.run.method.label, result.run.setting.number) == (method, setting)
            and _find_status(result, question) == "finished"
        ]
        rows[method] = pd.DataFrame(tests, columns=metrics, dtype=float).mean().to_dict()
    return pd.DataFrame.from_dict(rows, orient="index", columns=metrics)


def make_curves_table(question: Question, results: Sequence[RunResult]) -> pd.DataFrame:
    """Return a row per value of the monitor: ``method``, ``setting``, ``seed``, ``epoch``, ``step``, ``value``."""
    points = [
        {
            **_identify(result),
            "epoch": row.epoch,
            "step": row.step,
            "value": _drop_nonfinite(row.metrics[question.monitor]),
        }
        for result in results
        for row in result.find_validations(question.monitor)
    ]
    return _make_curves(points)


def make_losses_table(results: Sequence[RunResult]) -> pd.DataFrame:
    """Return a row per epoch of each run, with the columns of the curves; the value is the mean training loss."""
    points = [
        {**_identify(result), "epoch": epoch, "value": value}
        for result in results
        for epoch, value in enumerate(result.train_loss, start=1)
    ]
    return _make_curves(points)


def choose_axis(curves: pd.DataFrame) -> str:
    """Return ``"epoch"``, or ``"step"`` if epochs are unknown or have several validations."""
    duplicates = curves.duplicated(["method", "setting", "seed", "epoch"])
    return "step" if curves["epoch"].isna().any() or duplicates.any() else "epoch"


def make_settings_table(question: Question, runs: pd.DataFrame) -> pd.DataFrame:
    """Return a row per method and setting.

    Columns are ``method``, ``setting``, ``mean``, ``low``, ``high`` (the range of the seeds), ``finished``, ``failed``,
    ``tied`` and ``selected``. The setting with the fewest failed runs is selected, then the one with the most finished
    runs, then the one with the best mean. Means that differ by less than a millionth are tied: of neighboring values of
    one key, the middle one is selected (of two the smaller), else the first.
    """
    groups = []
    for (method, setting), group in runs.groupby(["method", "setting"], sort=False):
        values = group.loc[group["status"] == "finished", "validation"]
        low, high = values.min(), values.max()
        mean = min(max(values.mean(), low), high)  # rounding may move the mean of equal values
        row = {"method": method, "setting": setting, "mean": mean, "low": low, "high": high}
        groups.append(row | {"finished": len(values), "failed": len(group) - len(values)})
    frame = pd.DataFrame(groups).assign(tied=False, selected=False)
    places = frame.assign(_method=frame["method"].map(question.labels.index))
    frame = frame.loc[places.sort_values(["_method", "setting"]).index].reset_index(drop=True)
    for _, rows in frame[frame["finished"] > 0].groupby("method"):
        candidates = rows[rows["failed"] == rows["failed"].min()]
        candidates = candidates[candidates["finished"] == candidates["finished"].max()]
        best = candidates["mean"].max() if question.mode == "max" else candidates["mean"].min()
        tied = candidates[(candidates["mean"] - best).abs() <= RESOLUTION * abs(best)]
        frame.loc[tied.index, "tied"] = True
        frame.loc[tied.index[_find_middle(question, tied["setting"].tolist())], "selected"] = True
    return frame


def _find_middle(question: Question, tied: Sequence[int]) -> int:
    settings = [question.settings[number].values for number in tied]
    swept = [key for key in question.sweep if any(setting[key] != settings[0][key] for setting in settings)]
    if len(swept) != 1 or not are_numbers(question.sweep[swept[0]]):
        return 0
    ordered = sorted(question.sweep[swept[0]])
    places = [ordered.index(setting[swept[0]]) for setting in settings]
    if max(places) - min(places) >= len(places):
        return 0
    return places.index(sorted(places)[(len(places) - 1) // 2])


def make_summary(question: Question, runs: pd.DataFrame, settings: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """Return a row per method at its selected setting, in the order of the methods.

    Columns are ``setting``, ``seeds``, ``test``, ``test_low``, ``test_high`` (mean and 95% interval of the test
    metric), ``difference``, ``difference_low``, ``difference_high``, ``p``, ``p_holm``, ``seeds_needed`` (to the
    baseline, paired by seed), ``validation``, ``epochs_to_baseline`` and ``steps_to_baseline`` (until the baseline's
    final validation metric, a mean over the seeds that reach it), ``reached`` (the number of these), ``steps``,
    ``seconds_per_step``, ``seconds`` (medians), ``seeds_failed`` (at the selected setting) and ``failed`` (in all).
    """
    selected = dict(settings.loc[settings["selected"], ["method", "setting"]].to_numpy().tolist())
    tests = {method: map_seeds_to_tests(runs, method, setting) for method, setting in selected.items()}
    baseline = tests.get(question.baseline, {})
    others = {method: values for method, values in tests.items() if method != question.baseline}
    differences = differences_to(baseline, others)
    goal = settings.loc[settings["selected"] & (settings["method"] == question.baseline), "mean"]
    rows = []
    for method in question.labels:
        failed = int((runs.loc[runs["method"] == method, "status"] != "finished").sum())
        if method not in selected:
            rows.append({"method": method, "seeds": 0, "failed": failed})
            continue
        finished = find_finished_runs(runs, method, selected[method])
        test = estimate_mean(list(tests[method].values()))
        row: dict[str, Any] = {"method": method, "setting": selected[method], "seeds": test.count}
        row |= {"test": test.mean, "test_low": test.low, "test_high": test.high}
        row |= _make_columns(differences[method]) if method in differences else {}
        row["validation"] = finished["validation"].mean()
        if len(goal):
            curve = curves[(curves["method"] == method) & (curves["setting"] == selected[method])]
            curve = curve[curve["seed"].isin(finished["seed"])]
            row |= _find_time_to(goal.iloc[0], curve, question, choose_axis(curves))
        row |= {name: finished[name].astype(float).median() for name in ("steps", "seconds_per_step", "seconds")}
        attempts = runs[(runs["method"] == method) & (runs["setting"] == selected[method])]
        rows.append(row | {"seeds_failed": len(attempts) - len(finished), "failed": failed})
    return pd.DataFrame(rows).set_index("method").reindex(columns=_SUMMARY).astype({"setting": "Int64"})


def find_edges(question: Question, settings: pd.DataFrame) -> list[tuple[str, str, float, str]]:
    """Return best values at an end of the sweep: method, short key, value, and ``"lowest"`` or ``"highest"``."""
    edges = []
    for key, name in zip(question.sweep, shorten_keys(question.sweep), strict=True):
        values = question.sweep[key]
        if len(values) < 2 or not are_numbers(values):
            continue
        for method, rows in settings[settings["tied"]].groupby("method", sort=False):
            best = {question.settings[number].values[key] for number in rows["setting"]}
            if len(best) == len(values):  # all values are tied
                best = {question.settings[number].values[key] for number in rows.loc[rows["selected"], "setting"]}
            ends = [(min(values), "lowest"), (max(values), "highest")]
            edges += [(str(method), name, value, end) for value, end in ends if value in best]
    return edges


def find_finished_runs(runs: pd.DataFrame, method: str, setting: int) -> pd.DataFrame:
    """Return the finished runs of a method at a setting."""
    return runs[(runs["method"] == method) & (runs["setting"] == setting) & (runs["status"] == "finished")]


def find_selected_runs(runs: pd.DataFrame, summary: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the finished runs of each method at its selected setting, without methods that have none."""
    selected = summary.loc[summary["seeds"] > 0, "setting"]
    return {str(method): find_finished_runs(runs, str(method), setting) for method, setting in selected.items()}


def label_settings(question: Question, summary: pd.DataFrame) -> pd.DataFrame:
    """Return the summary with settings as text instead of their numbers."""
    labels = [None if pd.isna(number) else str(question.settings[number]) for number in summary["setting"]]
    return summary.assign(setting=pd.Series(labels, index=summary.index, dtype=object))


def _identify(result: RunResult) -> dict[str, Any]:
    run = result.run
    return {"method": run.method.label, "setting": run.setting.number, "seed": run.seed}


def _make_curves(points: list[dict[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(points, columns=["method", "setting", "seed", "epoch", "step", "value"])
    return frame.astype({"epoch": float, "step": float, "value": float})


def _find_status(result: RunResult, question: Question) -> str:
    """Return the status; a run with an inf or NaN metric has diverged, too."""
    if result.status != "finished":
        return result.status
    validations = result.find_validations(question.monitor)
    if not validations or question.test_monitor not in result.test:
        return "not measured"
    last = validations[-1].metrics[question.monitor], result.test[question.test_monitor]
    return "diverged" if None in map(_drop_nonfinite, last) else "finished"


def _drop_nonfinite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def map_seeds_to_tests(runs: pd.DataFrame, method: str, setting: int) -> dict[int, float]:
    """Return the test metric of each seed of a method at a setting."""
    finished = find_finished_runs(runs, method, setting)
    return {int(seed): float(value) for seed, value in zip(finished["seed"], finished["test"], strict=True)}


def _make_columns(difference: Difference) -> dict[str, Any]:
    columns = {"mean": "difference", "low": "difference_low", "high": "difference_high", "count": "paired"}
    return {columns.get(name, name): value for name, value in vars(difference).items()}


def _find_time_to(goal: float, curves: pd.DataFrame, question: Question, axis: str) -> dict[str, Any]:
    slack = RESOLUTION * abs(goal)
    has_reached = curves["value"] >= goal - slack if question.mode == "max" else curves["value"] <= goal + slack
    first = curves[has_reached].groupby("seed")[["epoch", "step"]].min()
    epochs = first["epoch"].mean() if axis == "epoch" else math.nan
    return {"epochs_to_baseline": epochs, "steps_to_baseline": first["step"].mean(), "reached": len(first)}
