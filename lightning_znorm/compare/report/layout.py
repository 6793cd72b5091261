"""Tables of text for a page."""

import math
from typing import Any

import pandas as pd

from lightning_znorm.compare.question.candidates import are_numbers
from lightning_znorm.compare.question.question import Question
from lightning_znorm.compare.report import procedure
from lightning_znorm.compare.report.findings import Findings
from lightning_znorm.compare.report.formatting import align
from lightning_znorm.compare.report.tables import list_key_columns


def format_summary(question: Question, findings: Findings) -> pd.DataFrame:
    """Format the summary, a row per method."""
    unit, summary = findings.unit, findings.summary
    rows = [row for _, row in summary.iterrows()]
    columns: dict[str, list[str]] = {"method": [str(method) for method in summary.index]}
    if question.keys:
        heading = "setting" if question.has_one_setting else "selected setting"
        columns[heading] = [row["setting"] if isinstance(row["setting"], str) else "–" for row in rows]
    columns[f"{question.test_monitor}{unit.heading}"] = unit.format_column(summary["test"].tolist())
    columns["95% interval"] = [unit.format_interval(row["test_low"], row["test_high"]) or "–" for row in rows]
    if len(question.methods) > 1:
        columns["answer"] = [row["answer"] if isinstance(row["answer"], str) else "–" for row in rows]
        columns["difference"] = [unit.format_signed(row["difference"]) for row in rows]
        columns["95% interval "] = [
            unit.format_difference_interval(row["difference_low"], row["difference_high"]) or "–" for row in rows
        ]
        columns["p (Holm)"] = [_format_p(row["p_holm"]) for row in rows]
        if question.margin is not None:
            columns["p (equivalence)"] = [_format_p(row["p_equivalence"]) for row in rows]
        columns["P(better)"] = [_format_probability(row) for row in rows]
        columns["pairs"] = ["–" if pd.isna(row["pairs"]) else f"{row['pairs']:.0f}" for row in rows]
        goal = f"to {question.baseline}'s {question.monitor}"
        columns[f"steps {goal}"] = [_format_reached(row, "steps_to_baseline") for row in rows]
        columns[f"seconds {goal}"] = [_format_reached(row, "seconds_to_baseline") for row in rows]
    else:
        columns["runs"] = [str(row["runs"]) for row in rows]
    if procedure.find_length_caveats(question, findings.runs):
        confirmed = findings.runs[findings.runs["stage"] == "confirmation"]
        by_method = {method: confirmed[confirmed["method"] == method] for method in columns["method"]}
        columns["steps"] = [
            procedure.format_length(own) if own["steps"].notna().any() else "–" for own in by_method.values()
        ]
    columns["ms per step"] = align((1000 * summary["seconds_per_step"].astype(float)).tolist(), digits=3)
    return pd.DataFrame(columns)


def _format_p(value: Any) -> str:
    return "–" if pd.isna(value) else f"{value:.2g}"


def _format_probability(row: "pd.Series[Any]") -> str:
    if pd.isna(row["probability"]):
        return "–"
    return f"{row['probability']:.2f} ({row['probability_low']:.2f} to {row['probability_high']:.2f})"


def _format_reached(row: "pd.Series[Any]", column: str) -> str:
    value = row[column]
    if pd.isna(value):
        return "–"
    text = "not reached" if math.isinf(value) else f"{value:.3g}" if value < 1000 else f"{value:.0f}"
    return text + (f" ({row['reached']:.0f} of {row['runs']} runs)" if row["reached"] < row["runs"] else "")


def make_overview(question: Question, findings: Findings) -> pd.DataFrame:
    """Return a row per method that is compared with the baseline, for a table of several comparisons."""
    unit = findings.unit
    rows = []
    for verdict in findings.verdicts:
        row = findings.summary.loc[findings.summary.index == verdict.method].iloc[0]
        rows.append(
            {
                "metric": f"{question.test_monitor}{unit.heading}",
                "method": verdict.method,
                "baseline": question.baseline,
                "answer": verdict.answer,
                "difference": unit.format_signed(row["difference"]),
                "95% interval": unit.format_difference_interval(row["difference_low"], row["difference_high"]) or "–",
                "p (Holm)": _format_p(row["p_holm"]),
                "pairs": "–" if pd.isna(row["pairs"]) else f"{row['pairs']:.0f}",
            }
        )
    return pd.DataFrame(rows)


def format_metrics(findings: Findings) -> pd.DataFrame | None:
    """Format the other test metrics, a row per method; ``None`` if there are none."""
    if findings.metrics.empty:
        return None
    frame = pd.DataFrame({name: align(column.tolist()) for name, column in findings.metrics.items()})
    frame.insert(0, "method", findings.metrics.index.tolist(), allow_duplicates=True)
    return frame


def format_trials(question: Question, findings: Findings) -> pd.DataFrame | None:
    """Format the validation metric of each tried setting, a column per method; ``None`` if nothing was selected."""
    trials, unit = findings.trials, findings.unit
    if trials.empty:
        return None
    texts = zip(*(unit.format_column(trials[name].tolist()) for name in ("mean", "low", "high")), strict=True)
    cells = {
        (row["method"], row["setting"]): _format_trial(row, *text)
        for (_, row), text in zip(trials.iterrows(), texts, strict=True)
    }
    keys = list_key_columns(trials)
    settings = trials.drop_duplicates("setting")
    # methods may have tried different values of a searched number
    if all(are_numbers(settings[key]) for key in keys):
        settings = settings.sort_values(keys)
    rows = [
        [setting, *(cells.get((method, setting), "") for method in question.labels)] for setting in settings["setting"]
    ]
    return pd.DataFrame(rows, columns=["setting", *question.labels])  # a method may be called "setting"


def _format_trial(row: "pd.Series[Any]", mean: str, low: str, high: str) -> str:
    text = mean if not row["failed"] else f"{row['failed']} of {row['seeds']} failed"
    if row["seeds"] > 1 and not row["failed"]:
        text += f" ({low} to {high})"
    return f"**{text}**" if row["selected"] else text
