"""The report of a comparison: `summary.md`, `summary.csv`, `runs.csv`, pictures, and `report.html` with all of it."""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined

from lightning_znorm.compare import plots, tables
from lightning_znorm.compare.options import Question
from lightning_znorm.compare.plan import Run, show_setting
from lightning_znorm.compare.store import Store, write_atomically
from lightning_znorm.compare.text import show_value
from lightning_znorm.compare.verdicts import Unit, caveats, choose_unit, judge

_CAPTIONS = {
    "differences.png": "Differences to the baseline",
    "curves.png": "Learning curves",
    "sweep.png": "Metric against the swept setting",
}


@dataclass(frozen=True)
class Findings:
    """All tables of a comparison.

    Attributes:
        runs: A row per run.
        curves: A row per validation.
        losses: A row per epoch.
        settings: A row per method and setting.
        summary: A row per method.
        metrics: Means of the other metrics of the test, a row per method.
        verdicts: A sentence per method.
        caveats: What a reader must know before believing them.
        unit: How the metric is written.

    """

    runs: pd.DataFrame
    curves: pd.DataFrame
    losses: pd.DataFrame
    settings: pd.DataFrame
    summary: pd.DataFrame
    metrics: pd.DataFrame
    verdicts: list[str]
    caveats: list[str]
    unit: Unit


def find(question: Question, results: Sequence[dict[str, Any]]) -> Findings:
    """Make tables and sentences of the results of runs."""
    runs = tables.make_runs_table(question, results)
    curves, losses = tables.make_curves_table(question, results), tables.make_losses_table(results)
    settings = tables.make_settings_table(question, runs)
    summary = tables.make_summary(question, runs, settings, curves)
    unit = choose_unit(question, runs)
    edges = tables.find_edges(question, settings)
    notes = caveats(question, summary, edges, tables.find_unequal(runs), tables.are_seeds_alike(runs))
    expected = len(question.runs)
    if len(results) < expected:
        notes.insert(0, f"Unfinished: {len(results)} of {expected} runs are done.")
    versions = {tuple(sorted(result["versions"].items())) for result in results}
    if len(versions) > 1:
        notes.append("The runs were made with different versions of the packages; see `runs.csv`.")
    metrics = tables.make_metrics_table(question, results, summary)
    return Findings(runs, curves, losses, settings, summary, metrics, judge(question, summary, unit), notes, unit)


def write_report(question: Question, store: Store, show_command: Callable[[Run], str] | None = None) -> Findings:
    """Write the report of the results that are there.

    Args:
        question: What is compared.
        store: Where the results are, and where the report goes.
        show_command: Writes the command that repeats a run alone, if there is one.

    Returns:
        What it says.

    """
    findings = find(question, store.results(question.runs))
    folder = store.folder
    write_atomically(folder / "runs.csv", findings.runs.drop(columns="setting").to_csv(index=False))
    others = findings.metrics.rename(columns=lambda name: tables.metric_column(name, findings.summary.columns))
    write_atomically(folder / "summary.csv", findings.summary.join(others).to_csv())
    figures = [
        ("differences.png", plots.plot_differences(question, findings.summary, findings.runs, findings.unit)),
        ("curves.png", plots.plot_curves(question, findings.summary, findings.curves, findings.losses, findings.unit)),
        ("sweep.png", plots.plot_sweep(question, findings.settings, findings.unit)),
    ]
    rendered = plots.save(figures, lambda name, content: write_atomically(folder / name, content))
    context = {
        "title": f"{', '.join(question.labels)}: {question.test_monitor}",
        "question": question,
        "findings": findings,
        "table": show_summary(question, findings),
        "settings": show_settings(question, findings),
        "metrics": show_metrics(findings),
        "captions": _CAPTIONS,
        "commands": list_commands(question, findings, show_command) if show_command else [],
        "context": show_context(findings.runs),
    }
    images = {name: base64.b64encode(content).decode() for name, content in rendered.items()}
    write_atomically(folder / "summary.md", render("summary.md.j2", **context, images=list(rendered)))
    write_atomically(folder / "report.html", render("report.html.j2", **context, images=images))
    return findings


def render(template: str, **context: Any) -> str:
    """Fill in one of the templates."""
    environment = Environment(
        autoescape=".html" in template,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["markdown"] = _to_markdown
    source = files("lightning_znorm.compare").joinpath("templates", template).read_text()
    return environment.from_string(source).render(**context)


def show_summary(question: Question, findings: Findings) -> pd.DataFrame:
    """Return the summary as text, a row per method."""
    unit, rows = findings.unit, []
    for method, row in findings.summary.iterrows():
        cells: dict[str, str] = {"method": str(method)}
        if question.sweep:
            cells["selected setting"] = row["setting"] if row["seeds"] else "–"
        cells[f"{question.test_monitor}{unit.heading}"] = unit.value(row["test"])
        cells["95% interval"] = unit.interval_of_metric(row["test_low"], row["test_high"]) or "–"
        cells["difference"] = "–" if pd.isna(row["difference"]) else _signed(row["difference"], unit)
        cells["95% interval "] = unit.interval(row["difference_low"], row["difference_high"]) or "–"
        cells["p (Holm)"] = "–" if pd.isna(row["p_holm"]) else f"{row['p_holm']:.2g}"
        cells["seeds"] = str(int(row["seeds"]))
        reached = int(row["reached"]) if pd.notna(row["reached"]) else 0
        epochs = f"{row['epochs_to_baseline']:.1f}" if reached else "not reached"
        cells[f"epochs to {question.baseline}'s final {question.monitor}"] = epochs + (
            f" ({reached} of {int(row['seeds'])} seeds)" if 0 < reached < row["seeds"] else ""
        )
        step = row["seconds_per_step"]
        cells["ms per step"] = "–" if pd.isna(step) else f"{1000 * step:.3g}"
        rows.append(cells)
    return pd.DataFrame(rows)


def show_metrics(findings: Findings) -> pd.DataFrame | None:
    """Return the other metrics of the test as text, a row per method; ``None`` if there are none."""
    if findings.metrics.empty:
        return None
    shown = findings.metrics.map(lambda value: "–" if pd.isna(value) else f"{value:.4g}")
    return shown.rename_axis("method").reset_index()


def show_settings(question: Question, findings: Findings) -> pd.DataFrame | None:
    """Return the validation metric of each setting as text, a column per method; ``None`` if nothing was swept."""
    if not question.sweep:
        return None
    unit = findings.unit
    rows = []
    for setting in question.settings:
        cells = {"setting": show_setting(setting)}
        for method in question.labels:
            own = findings.settings[
                (findings.settings["method"] == method) & (findings.settings["setting"] == cells["setting"])
            ]
            cells[method] = _show_setting_cell(own.iloc[0], unit) if len(own) else "–"
        rows.append(cells)
    return pd.DataFrame(rows)


def _show_setting_cell(row: "pd.Series[Any]", unit: Unit) -> str:
    text = unit.value(row["mean"])
    if row["finished"] > 1:
        text += f" ({unit.interval(row['low'], row['high'])})"
    if row["failed"]:
        text += f" [{row['failed']} failed]"
    return f"**{text}**" if row["selected"] else text


def list_commands(question: Question, findings: Findings, show_command: Callable[[Run], str]) -> list[str]:
    """Return the command that repeats the first seed of each method at its selected setting."""
    chosen = findings.summary.loc[findings.summary["seeds"] > 0, "setting"]
    methods = {method.label: method for method in question.methods}
    seed = question.seeds[0]
    return [
        show_command(Run(methods[str(label)], question.read_setting(setting), seed))
        for label, setting in chosen.items()
    ]


def show_context(runs: pd.DataFrame) -> str:
    """Return versions, device and the time that the runs took."""
    parts = []
    for column in ("torch", "lightning", "device"):
        found = sorted({str(value) for value in runs[column].dropna()})
        if found:
            parts.append(", ".join(found) if column == "device" else f"{column} {', '.join(found)}")
    hours = runs["seconds"].sum() / 3600
    return "; ".join([*parts, f"{show_value(round(hours, 2))} hours of runs"])


def _to_markdown(frame: pd.DataFrame) -> str:
    escaped = frame.rename(columns=_escape_bars).map(_escape_bars)
    return str(escaped.to_markdown(index=False, disable_numparse=True))


def _escape_bars(cell: str) -> str:
    return cell.replace("|", r"\|")


def _signed(value: float, unit: Unit) -> str:
    return f"{100 * value:+.1f}" if unit.is_share else f"{value:+.3g}"
