"""Data frames of runs and methods."""

from collections.abc import Container, Mapping, Sequence
from typing import Any

import pandas as pd

from lightning_znorm.compare.options import Question
from lightning_znorm.compare.plan import short_names, show_setting
from lightning_znorm.compare.statistics import Difference, differences_to, estimate_mean

_SUMMARY = [
    *("setting", "seeds", "test", "test_low", "test_high", "difference", "difference_low", "difference_high", "paired"),
    *("p", "p_holm", "seeds_needed", "validation", "epochs_to_baseline", "reached", "seconds_per_step", "seconds"),
    "failed",
]


def make_runs_table(question: Question, results: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return a row per run.

    Columns are ``method``, each swept key (with ``sweep.`` before it where it would be called as another column),
    ``seed``, ``status``, ``validation`` and ``test`` (the monitored metrics at the end), ``train_loss``, ``epochs``,
    ``steps``, ``seconds`` (of the whole run), ``seconds_per_step``, ``device``, ``weights_hash``, ``batches_hash``,
    ``error``, ``lightning`` and ``torch`` with their versions, all metrics of the test under their names (with
    ``metric.`` before one that would be called as another column), and ``setting`` as a text.
    """
    rows = []
    for result in results:
        curve = result.get("curve") or []
        seconds = result.get("seconds") or {}
        rows.append(
            {
                "method": result["method"],
                "seed": result["seed"],
                "status": _status(result, question),
                "validation": curve[-1]["metrics"].get(question.monitor) if curve else None,
                "test": result["test"].get(question.test_monitor),
                "train_loss": next(iter(reversed(result.get("train_loss") or [])), None),
                "epochs": result.get("epochs"),
                "steps": result.get("steps"),
                "seconds": seconds.get("all"),
                "seconds_per_step": seconds.get("step"),
                "device": result.get("device"),
                "weights_hash": result.get("weights_hash", "")[:16],
                "batches_hash": result.get("batches_hash", "")[:16],
                "error": (str(result.get("error") or "").splitlines() or [""])[0],
                "torch": result["versions"].get("torch"),
                "lightning": result["versions"].get("lightning", result["versions"].get("pytorch-lightning")),
            }
        )
    frame = pd.DataFrame(rows)
    figures = ["validation", "test", "train_loss", "seconds", "seconds_per_step"]
    frame = frame.astype(dict.fromkeys(figures, float)).assign(setting=[show_setting(r["setting"]) for r in results])
    for position, key in enumerate(question.sweep, start=1):
        name = f"sweep.{key}" if key in frame else key
        frame.insert(position, name, pd.Series([result["setting"][key] for result in results], dtype=object))
    for metric in list_metrics(results):
        values = [result["test"].get(metric) for result in results]
        frame[metric_column(metric, frame)] = pd.Series(values, dtype=float)
    return frame


def list_metrics(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of all metrics of the test, in the order in which they were logged."""
    return list(dict.fromkeys(name for result in results for name in result["test"]))


def metric_column(metric: str, columns: Container[str]) -> str:
    """Return the name of a metric's column beside others."""
    return f"metric.{metric}" if metric in columns else metric


def make_metrics_table(question: Question, results: Sequence[Mapping[str, Any]], summary: pd.DataFrame) -> pd.DataFrame:
    """Return the means of the other metrics of the test, a row per method at its selected setting."""
    metrics = [metric for metric in list_metrics(results) if metric != question.test_monitor]
    rows = {}
    for method, setting in summary.loc[summary["seeds"] > 0, "setting"].items():
        own = [
            result["test"]
            for result in results
            if (result["method"], show_setting(result["setting"])) == (method, setting)
            and _status(result, question) == "finished"
        ]
        rows[method] = {metric: pd.Series([each.get(metric) for each in own], dtype=float).mean() for metric in metrics}
    return pd.DataFrame.from_dict(rows, orient="index", columns=metrics)


def make_curves_table(question: Question, results: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return a row per validation of each run: ``method``, ``setting``, ``seed``, ``epoch``, ``value``."""
    points = [
        {**_of(result), "epoch": row["epoch"], "value": row["metrics"].get(question.monitor)}
        for result in results
        for row in result.get("curve") or []
    ]
    return _as_curves(points)


def make_losses_table(results: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return a row per epoch of each run, with the columns of the curves; the value is the mean training loss."""
    points = [
        {**_of(result), "epoch": epoch, "value": value}
        for result in results
        for epoch, value in enumerate(result.get("train_loss") or [], start=1)
    ]
    return _as_curves(points)


def make_settings_table(question: Question, runs: pd.DataFrame) -> pd.DataFrame:
    """Return a row per method and setting: validation over the seeds, and how many runs failed.

    Columns are ``method``, ``setting``, ``mean``, ``low``, ``high`` (the range of the seeds), ``finished``, ``failed``
    and ``selected``. Of each method the setting is selected whose seeds failed least, then the
    one of which most is known, then the one with the best mean.
    """
    order = {show_setting(setting): number for number, setting in enumerate(question.settings)}
    groups = []
    for (method, setting), group in runs.groupby(["method", "setting"], sort=False):
        good = group.loc[group["status"] == "finished", "validation"]
        row = {"method": method, "setting": setting, "mean": good.mean(), "low": good.min(), "high": good.max()}
        groups.append(row | {"finished": len(good), "failed": len(group) - len(good)})
    frame = pd.DataFrame(groups)
    sign = -1 if question.mode == "max" else 1
    ranked = frame.assign(
        _method=frame["method"].map(question.labels.index),
        _finished=-frame["finished"],
        _loss=sign * frame["mean"],
        _setting=frame["setting"].map(order),
    ).sort_values(["_method", "failed", "_finished", "_loss", "_setting"], kind="stable")
    best = ranked.loc[ranked["finished"] > 0].groupby("method").head(1).index
    frame["selected"] = frame.index.isin(best)
    return frame.loc[ranked.sort_values(["_method", "_setting"]).index].reset_index(drop=True)


def make_summary(question: Question, runs: pd.DataFrame, settings: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """Return a row per method at its selected setting, in the order of the methods.

    Columns are ``setting``, ``seeds``, ``test``, ``test_low``, ``test_high`` (mean and 95% interval of the test
    metric), ``difference``, ``difference_low``, ``difference_high``, ``p``, ``p_holm``, ``seeds_needed`` (to the
    baseline, paired by seed), ``validation``, ``epochs_to_baseline`` (mean over the seeds that reach it, of the epochs
    until the baseline's final validation metric), ``reached`` (how many do), ``seconds_per_step``, ``seconds`` and
    ``failed`` (of all its runs).
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
        chosen = choose(runs, method, selected[method])
        test = estimate_mean(list(figures[method].values()))
        row: dict[str, Any] = {"method": method, "setting": selected[method], "seeds": test.count}
        row |= {"test": test.mean, "test_low": test.low, "test_high": test.high}
        row |= _describe_difference(differences.get(method))
        row["validation"] = chosen["validation"].mean()
        if len(goal):
            own = curves[(curves["method"] == method) & (curves["setting"] == selected[method])]
            own = own[own["seed"].isin(chosen["seed"])]
            row |= _epochs_to(own, goal.iloc[0], question)
        row |= {"seconds_per_step": chosen["seconds_per_step"].median(), "seconds": chosen["seconds"].median()}
        rows.append(row | {"failed": failed})
    return pd.DataFrame(rows).set_index("method").reindex(columns=_SUMMARY)


def find_edges(question: Question, settings: pd.DataFrame) -> list[tuple[str, str, float, str]]:
    """Find selected values at an end of the sweep.

    Returns:
        Method, short name of the key, the value, and ``"lowest"`` or ``"highest"``.

    """
    edges = []
    for key, name in zip(question.sweep, short_names(question.sweep), strict=True):
        values = question.sweep[key]
        if len(values) < 2 or not are_numbers(values):
            continue
        for _, row in settings[settings["selected"]].iterrows():
            value = question.read_setting(row["setting"])[key]
            if value in (min(values), max(values)):
                edges.append((row["method"], name, value, "lowest" if value == min(values) else "highest"))
    return edges


def find_unequal(runs: pd.DataFrame) -> list[str]:
    """Find settings and seeds in which the methods did not share first weights or batches.

    Returns:
        A description of each kind of inequality.

    """
    found = []
    began = runs[runs["weights_hash"] != ""]
    finished = runs[runs["status"] == "finished"]
    for column, what, among in (("weights_hash", "initial weights", began), ("batches_hash", "batches", finished)):
        counts = among.groupby(["setting", "seed"])[column].nunique()
        unequal = counts[counts > 1]
        if len(unequal):
            setting, seed = unequal.index[0]
            where = f"{setting}, seed {seed}" if setting else f"seed {seed}"
            found.append(f"the {what} differ between methods in {len(unequal)} of {len(counts)} cases (first: {where})")
    return found


def are_seeds_alike(runs: pd.DataFrame) -> bool:
    """Say whether runs of different seeds had the same first weights and the same batches."""
    finished = runs[runs["status"] == "finished"]
    groups = finished.groupby(["method", "setting"])
    seeds = groups["seed"].nunique()
    kinds = groups.apply(lambda group: len(group[["weights_hash", "batches_hash"]].drop_duplicates()))
    return bool((seeds > 1).any() and (kinds[seeds > 1] == 1).all())


def choose(runs: pd.DataFrame, method: str, setting: str) -> pd.DataFrame:
    """Return the finished runs of a method at a setting."""
    return runs[(runs["method"] == method) & (runs["setting"] == setting) & (runs["status"] == "finished")]


def are_numbers(values: Sequence[Any]) -> bool:
    """Say whether all values are numbers."""
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)


def _of(result: Mapping[str, Any]) -> dict[str, Any]:
    return {"method": result["method"], "setting": show_setting(result["setting"]), "seed": result["seed"]}


def _as_curves(points: list[dict[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(points, columns=["method", "setting", "seed", "epoch", "value"])
    return frame.astype({"epoch": float, "value": float})


def _status(result: Mapping[str, Any], question: Question) -> str:
    """Return the status; a run whose metric is lost has diverged, too."""
    if result["status"] != "finished":
        return str(result["status"])
    curve = result.get("curve") or [{"metrics": {}}]
    for metrics, name in ((curve[-1]["metrics"], question.monitor), (result["test"], question.test_monitor)):
        if metrics.get(name) is None:
            return "diverged" if name in metrics else "not measured"
    return "finished"


def _by_seed(runs: pd.DataFrame, method: str, setting: str) -> dict[int, float]:
    chosen = choose(runs, method, setting)
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


def _epochs_to(curves: pd.DataFrame, goal: float, question: Question) -> dict[str, Any]:
    good = curves["value"] >= goal if question.mode == "max" else curves["value"] <= goal
    first = curves[good].groupby("seed")["epoch"].min()
    return {"epochs_to_baseline": first.mean(), "reached": len(first)}
