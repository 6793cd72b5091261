"""Data frames of runs and methods."""

import math
from collections.abc import Container, Sequence
from typing import Any

import pandas as pd

from lightning_znorm.compare.question.plan import short_names
from lightning_znorm.compare.question.question import Question
from lightning_znorm.compare.report.statistics import RESOLUTION, Difference, differences_to, estimate_mean
from lightning_znorm.compare.runs.result import RunResult

_SUMMARY = [
    *("setting", "seeds", "test", "test_low", "test_high", "difference", "difference_low", "difference_high", "paired"),
    *("p", "p_holm", "seeds_needed", "validation", "epochs_to_baseline", "steps_to_baseline", "reached"),
    *("steps", "seconds_per_step", "seconds", "seeds_failed", "failed"),
]


def make_runs_table(question: Question, results: Sequence[RunResult]) -> pd.DataFrame:
    """Return a row per run.

    Columns are ``method``, each swept key (with ``sweep.`` before it where it would be named like another column),
    ``seed``, ``status``, ``validation`` and ``test`` (the monitored metrics, as last logged), ``train_loss``,
    ``epochs``, ``steps``, ``ended`` (why the training did), ``seconds`` (of the whole run), ``seconds_per_step``,
    ``resumed``, ``device``, ``weights_hash``, ``batches_hash``, ``error``, ``lightning-znorm``, ``lightning`` and
    ``torch`` with their versions, ``commit`` and ``dirty`` of this package, all metrics of the test under their names
    (with ``metric.`` before one that would be named like another column), and ``setting`` by its number.
    """
    rows = [_make_row(question, result) for result in results]
    frame = pd.DataFrame(rows)
    figures = ["validation", "test", "train_loss", "seconds", "seconds_per_step"]
    frame = frame.astype(dict.fromkeys(figures, float)).assign(
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
    logged = result.rows_with(question.monitor)
    versions = result.versions
    return {
        "method": result.run.method.label,
        "seed": result.run.seed,
        "status": _status(result, question),
        "validation": _finite(logged[-1].metrics[question.monitor]) if logged else None,
        "test": _finite(result.test.get(question.test_monitor)),
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
    """Return the names of all metrics of the test, in the order in which they were logged."""
    return list(dict.fromkeys(name for result in results for name in result.test))


def name_metric_column(metric: str, columns: Container[str]) -> str:
    """Return the name of a metric's column beside others."""
    return f"metric.{metric}" if metric in columns else metric


def make_metrics_table(question: Question, results: Sequence[RunResult], summary: pd.DataFrame) -> pd.DataFrame:
    """Return the means of the other metrics of the test, a row per method at its selected setting."""
    metrics = [metric for metric in list_metrics(results) if metric != question.test_monitor]
    rows = {}
    for method, setting in summary.loc[summary["seeds"] > 0, "setting"].items():
        own = [
            result.test
            for result in results
            if (result.run.method.label, result.run.setting.number) == (method, setting)
            and _status(result, question) == "finished"
        ]
        rows[method] = {metric: pd.Series([each.get(metric) for each in own], dtype=float).mean() for metric in metrics}
    return pd.DataFrame.from_dict(rows, orient="index", columns=metrics)


def make_curves_table(question: Question, results: Sequence[RunResult]) -> pd.DataFrame:
    """Return a row per value of the monitor: ``method``, ``setting``, ``seed``, ``epoch``, ``step``, ``value``."""
    points = [
        {**_of(result), "epoch": row.epoch, "step": row.step, "value": _finite(row.metrics[question.monitor])}
        for result in results
        for row in result.rows_with(question.monitor)
    ]
    return _as_curves(points)


def make_losses_table(results: Sequence[RunResult]) -> pd.DataFrame:
    """Return a row per epoch of each run, with the columns of the curves; the value is the mean training loss."""
    points = [
        {**_of(result), "epoch": epoch, "value": value}
        for result in results
        for epoch, value in enumerate(result.train_loss, start=1)
    ]
    return _as_curves(points)


def choose_axis(curves: pd.DataFrame) -> str:
    """Return ``"epoch"``, or ``"step"`` where epochs are not known or several validations count as one."""
    same = curves.duplicated(["method", "setting", "seed", "epoch"])
    return "step" if curves["epoch"].isna().any() or same.any() else "epoch"


def make_settings_table(question: Question, runs: pd.DataFrame) -> pd.DataFrame:
    """Return a row per method and setting: validation over the seeds, and how many runs failed.

    Columns are ``method``, ``setting``, ``mean``, ``low``, ``high`` (the range of the seeds), ``finished``, ``failed``,
    ``tied`` and ``selected``. Of each method the setting is selected whose seeds failed least, then the one of which
    most is known, then the one with the best mean. Means that differ by less than a millionth are tied: where they
    belong to neighboring values of one key, the middle one is selected (of two the smaller), else the first.
    """
    groups = []
    for (method, setting), group in runs.groupby(["method", "setting"], sort=False):
        good = group.loc[group["status"] == "finished", "validation"]
        low, high = good.min(), good.max()
        mean = min(max(good.mean(), low), high)  # that of equal values may be rounded out of their range
        row = {"method": method, "setting": setting, "mean": mean, "low": low, "high": high}
        groups.append(row | {"finished": len(good), "failed": len(group) - len(good)})
    frame = pd.DataFrame(groups).assign(tied=False, selected=False)
    places = frame.assign(_method=frame["method"].map(question.labels.index))
    frame = frame.loc[places.sort_values(["_method", "setting"]).index].reset_index(drop=True)
    for _, rows in frame[frame["finished"] > 0].groupby("method"):
        known = rows[rows["failed"] == rows["failed"].min()]
        known = known[known["finished"] == known["finished"].max()]
        best = known["mean"].max() if question.mode == "max" else known["mean"].min()
        tied = known[(known["mean"] - best).abs() <= RESOLUTION * abs(best)]
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
    baseline, paired by seed), ``validation``, ``epochs_to_baseline`` (mean over the seeds that reach it, of the epochs
    until the baseline's final validation metric; NaN where epochs are not known), ``steps_to_baseline``, ``reached``
    (how many do), ``steps``, ``seconds_per_step``, ``seconds`` (medians), ``seeds_failed`` (at the selected setting)
    and ``failed`` (of all its runs).
    """
    selected = dict(settings.loc[settings["selected"], ["method", "setting"]].to_numpy().tolist())
    figures = {method: _by_seed(runs, method, setting) for method, setting in selected.items()}
    baseline = figures.get(question.baseline, {})
    others = {method: values for method, values in figures.items() if method != question.baseline}
    differences = differences_to(baseline, others)
    goal = settings.loc[settings["selected"] & (settings["method"] == question.baseline), "mean"]
    rows = []
    for method in question.labels:
        failed = int((runs.loc[runs["method"] == method, "status"] != "finished").sum())
        if method not in selected:
            rows.append({"method": method, "seeds": 0, "failed": failed})
            continue
        chosen = find_finished_runs(runs, method, selected[method])
        test = estimate_mean(list(figures[method].values()))
        row: dict[str, Any] = {"method": method, "setting": selected[method], "seeds": test.count}
        row |= {"test": test.mean, "test_low": test.low, "test_high": test.high}
        row |= _describe_difference(differences.get(method))
        row["validation"] = chosen["validation"].mean()
        if len(goal):
            own = curves[(curves["method"] == method) & (curves["setting"] == selected[method])]
            row |= _time_to(own[own["seed"].isin(chosen["seed"])], goal.iloc[0], question, choose_axis(curves))
        row |= {name: chosen[name].astype(float).median() for name in ("steps", "seconds_per_step", "seconds")}
        attempts = runs[(runs["method"] == method) & (runs["setting"] == selected[method])]
        rows.append(row | {"seeds_failed": len(attempts) - len(chosen), "failed": failed})
    return pd.DataFrame(rows).set_index("method").reindex(columns=_SUMMARY).astype({"setting": "Int64"})


def find_edges(question: Question, settings: pd.DataFrame) -> list[tuple[str, str, float, str]]:
    """Find best values at an end of the sweep; of tied ones the selected one alone counts where all values are tied.

    Returns:
        Method, short name of the key, the value, and ``"lowest"`` or ``"highest"``.

    """
    edges = []
    for key, name in zip(question.sweep, short_names(question.sweep), strict=True):
        values = question.sweep[key]
        if len(values) < 2 or not are_numbers(values):
            continue
        for method, rows in settings[settings["tied"]].groupby("method", sort=False):
            best = {question.settings[number].values[key] for number in rows["setting"]}
            if len(best) == len(values):
                best = {question.settings[number].values[key] for number in rows.loc[rows["selected"], "setting"]}
            ends = [(min(values), "lowest"), (max(values), "highest")]
            edges += [(str(method), name, value, end) for value, end in ends if value in best]
    return edges


def find_finished_runs(runs: pd.DataFrame, method: str, setting: int) -> pd.DataFrame:
    """Return the finished runs of a method at a setting."""
    return runs[(runs["method"] == method) & (runs["setting"] == setting) & (runs["status"] == "finished")]


def find_selected_runs(runs: pd.DataFrame, summary: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the finished runs of each method at its selected setting; methods that have none are left out."""
    selected = summary.loc[summary["seeds"] > 0, "setting"]
    return {str(method): find_finished_runs(runs, str(method), setting) for method, setting in selected.items()}


def are_numbers(values: Sequence[Any]) -> bool:
    """Say whether all values are numbers."""
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)


def label_settings(question: Question, summary: pd.DataFrame) -> pd.DataFrame:
    """Return the summary with settings as text instead of their numbers."""
    labels = [None if pd.isna(number) else str(question.settings[number]) for number in summary["setting"]]
    return summary.assign(setting=pd.Series(labels, index=summary.index, dtype=object))


def _of(result: RunResult) -> dict[str, Any]:
    run = result.run
    return {"method": run.method.label, "setting": run.setting.number, "seed": run.seed}


def _as_curves(points: list[dict[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(points, columns=["method", "setting", "seed", "epoch", "step", "value"])
    return frame.astype({"epoch": float, "step": float, "value": float})


def _status(result: RunResult, question: Question) -> str:
    """Return the status; a run whose metric is lost has diverged, too."""
    if result.status != "finished":
        return result.status
    validations = result.rows_with(question.monitor)
    if not validations or question.test_monitor not in result.test:
        return "not measured"
    last = validations[-1].metrics[question.monitor], result.test[question.test_monitor]
    return "diverged" if None in map(_finite, last) else "finished"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _by_seed(runs: pd.DataFrame, method: str, setting: int) -> dict[int, float]:
    chosen = find_finished_runs(runs, method, setting)
    return {int(seed): float(value) for seed, value in zip(chosen["seed"], chosen["test"], strict=True)}


def _describe_difference(difference: Difference | None) -> dict[str, Any]:
    if difference is None:
        return {}
    return {
        "difference": difference.mean,
        "difference_low": difference.low,
        "difference_high": difference.high,
        "p": difference.p,
        "p_holm": difference.p_holm,
        "seeds_needed": difference.seeds_needed,
        "paired": difference.count,
    }


def _time_to(curves: pd.DataFrame, goal: float, question: Question, axis: str) -> dict[str, Any]:
    slack = RESOLUTION * abs(goal)
    good = curves["value"] >= goal - slack if question.mode == "max" else curves["value"] <= goal + slack
    first = curves[good].groupby("seed")[["epoch", "step"]].min()
    epochs = first["epoch"].mean() if axis == "epoch" else math.nan
    return {"epochs_to_baseline": epochs, "steps_to_baseline": first["step"].mean(), "reached": len(first)}
