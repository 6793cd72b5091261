"""The report of a comparison: `summary.md`, `summary.csv`, `runs.csv`, pictures, and `report.html` with all of it."""

import base64
import warnings
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure
from pandas.api.types import is_numeric_dtype

from lightning_znorm.compare.files import write_atomically
from lightning_znorm.compare.question.plan import Run
from lightning_znorm.compare.question.question import Question
from lightning_znorm.compare.report import plots, procedure, tables
from lightning_znorm.compare.report.findings import Findings
from lightning_znorm.compare.report.formatting import align, clean, escape, escape_prose
from lightning_znorm.compare.report.statistics import MIN_SEEDS
from lightning_znorm.compare.report.verdicts import Unit, describe_scope
from lightning_znorm.errors import join_names

_CAPTIONS = {
    "differences.png": "Differences to the baseline",
    "curves.png": "Learning curves",
    "sweep.png": "Metric against the swept setting",
}


def write_report(
    question: Question, findings: Findings, folder: Path, format_command: Callable[[Run], str] | None = None
) -> None:
    """Write the report into a folder, with the commands that repeat runs if there are some."""
    write_atomically(folder / "runs.csv", _to_csv(findings.runs.drop(columns="setting")))
    columns = ["method", *findings.summary.columns]
    others = findings.metrics.rename(columns=lambda name: tables.name_metric_column(name, columns))
    summary_table = tables.label_settings(question, findings.summary).join(others)
    write_atomically(folder / "summary.csv", _to_csv(summary_table.reset_index()))
    images = _draw_plots(question, findings, folder)
    context = _make_context(question, findings) | {
        "settings": format_settings(question, findings),
        "metrics": format_metrics(findings),
        "captions": _CAPTIONS,
        "commands": list_commands(question, findings, format_command) if format_command else [],
        "context": procedure.describe_context(findings.runs, findings.provenances),
    }
    summary = render("summary.md.j2", **context, answer=render_answer(question, findings), images=list(images))
    write_atomically(folder / "summary.md", summary)
    encoded = {name: base64.b64encode(content).decode() for name, content in images.items()}
    write_atomically(folder / "report.html", render("report.html.j2", **context, images=encoded))


def find_report_files(folder: Path) -> list[Path]:
    """Return the existing files of a report."""
    names = ("report.html", "summary.md", "summary.csv", "runs.csv", "curves.png", "sweep.png", "differences.png")
    return [folder / name for name in names if (folder / name).exists()]


def render_answer(question: Question, findings: Findings) -> str:
    """Return the first part of the report in Markdown: verdicts, table and caveats."""
    return render("answer.md.j2", **_make_context(question, findings)).rstrip()


def _make_context(question: Question, findings: Findings) -> dict[str, Any]:
    return {
        "title": f"{question.test_monitor} of {join_names(question.labels, 6)} ({question.direction})",
        "scope": describe_scope(question),
        "question": question,
        "findings": findings,
        "table": format_summary(question, findings),
    }


def _draw_plots(question: Question, findings: Findings, folder: Path) -> dict[str, bytes]:
    """Write the pictures; one that cannot be drawn becomes a caveat."""
    plotters: dict[str, Callable[[], Figure | None]] = {
        "differences.png": partial(plots.plot_differences, question, findings.summary, findings.runs, findings.unit),
        "curves.png": partial(
            plots.plot_curves,
            question,
            findings.summary,
            findings.curves,
            findings.losses,
            findings.unit,
            findings.axis,
        ),
        "sweep.png": partial(plots.plot_sweep, question, findings.settings, findings.unit),
    }
    images = {}
    for name, plot in plotters.items():
        try:
            (folder / name).unlink(missing_ok=True)  # of an earlier report
            figure = plot()
            if figure is not None:
                images[name] = plots.render(figure)
                write_atomically(folder / name, images[name])
        except Exception as error:
            images.pop(name, None)
            reason = clean(f"{type(error).__name__}: {error}")[:200]
            findings.caveats.append(f"The picture `{name}` could not be drawn ({reason}).")
            warnings.warn(f"The picture {folder / name} could not be drawn ({reason}); it is left out.", stacklevel=2)
    return images


def render(template: str, **context: Any) -> str:
    """Fill in a template."""
    environment = Environment(
        autoescape=".html" in template,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"markdown": _to_markdown, "plain": escape, "prose": escape_prose, "clean": clean}
    source = files("lightning_znorm.compare.report").joinpath("templates", template).read_text()
    return environment.from_string(source).render(**context)


def format_summary(question: Question, findings: Findings) -> pd.DataFrame:
    """Format the summary, a row per method."""
    unit, summary, axis = findings.unit, findings.summary, findings.axis
    columns: dict[str, list[str]] = {"method": [str(method) for method in summary.index]}
    rows = [row for _, row in summary.iterrows()]
    if question.sweep:
        heading = "setting" if question.has_one_setting else "selected setting"
        columns[heading] = [str(question.settings[row["setting"]]) if row["seeds"] else "–" for row in rows]
    columns[f"{question.test_monitor}{unit.heading}"] = unit.format_column(summary["test"].tolist())
    columns["95% interval"] = [unit.format_interval(row["test_low"], row["test_high"]) or "–" for row in rows]
    columns["difference"] = [
        "–" if pd.isna(row["difference"]) else _format_signed(row["difference"], unit) for row in rows
    ]
    columns["95% interval "] = [
        unit.format_difference_interval(row["difference_low"], row["difference_high"]) or "–" for row in rows
    ]
    failed = summary["seeds_failed"].fillna(0)
    is_tested = (summary["paired"] >= MIN_SEEDS) & summary["p_holm"].notna() & (failed == 0)
    is_tested &= bool(failed[question.baseline] == 0)
    columns["p (Holm)"] = [
        f"{p:.2g}" if tested else "–" for p, tested in zip(summary["p_holm"], is_tested, strict=True)
    ]
    columns["seeds"] = [str(int(row["seeds"])) for row in rows]
    selected = tables.find_selected_runs(findings.runs, summary)
    if procedure.find_length_caveats(selected):
        columns["steps"] = [
            procedure.format_length(selected[method]) if method in selected else "–" for method in columns["method"]
        ]
    columns[f"{axis}s to {question.baseline}'s final {question.monitor}"] = [_format_reached(row, axis) for row in rows]
    columns["ms per step"] = align((1000 * summary["seconds_per_step"]).tolist(), digits=3)
    return pd.DataFrame(columns)


def _format_reached(row: "pd.Series[Any]", axis: str) -> str:
    if pd.isna(row["reached"]):
        return "–"
    reached = int(row["reached"])
    if not reached:
        return "not reached"
    time = f"{row['epochs_to_baseline']:.1f}" if axis == "epoch" else f"{row['steps_to_baseline']:.0f}"
    return time + (f" ({reached} of {int(row['seeds'])} seeds)" if reached < row["seeds"] else "")


def format_metrics(findings: Findings) -> pd.DataFrame | None:
    """Format the other test metrics, a row per method; ``None`` if there are none."""
    if findings.metrics.empty:
        return None
    frame = pd.DataFrame({name: align(column.tolist()) for name, column in findings.metrics.items()})
    frame.insert(0, "method", findings.metrics.index.tolist(), allow_duplicates=True)
    return frame


def format_settings(question: Question, findings: Findings) -> pd.DataFrame | None:
    """Format the validation metric of each setting, a column per method; ``None`` if there is only one."""
    if question.has_one_setting:
        return None
    settings, unit = findings.settings, findings.unit
    columns = [unit.format_column(settings[name].tolist()) for name in ("mean", "low", "high")]
    cells = {
        (row["method"], row["setting"]): _format_setting_cell(row, *texts)
        for (_, row), *texts in zip(settings.iterrows(), *columns, strict=True)
    }
    rows = [
        [str(setting), *(cells.get((method, setting.number), "–") for method in question.labels)]
        for setting in question.settings
    ]
    return pd.DataFrame(rows, columns=["setting", *question.labels])  # a method may be called "setting"


def _format_setting_cell(row: "pd.Series[Any]", mean: str, low: str, high: str) -> str:
    text = mean
    if row["finished"] > 1:
        text += f" ({low} to {high})"
    if row["failed"]:
        text += f" [{row['failed']} failed]"
    return f"**{text}**" if row["selected"] else text


def list_commands(question: Question, findings: Findings, format_command: Callable[[Run], str]) -> list[str]:
    """Return the command that repeats the first seed of each method at its selected setting."""
    selected = findings.summary.loc[findings.summary["seeds"] > 0, "setting"]
    methods = {method.label: method for method in question.methods}
    seed = question.seeds[0]
    return [
        format_command(Run(methods[str(label)], question.settings[number], seed)) for label, number in selected.items()
    ]


def _to_markdown(frame: pd.DataFrame) -> str:
    rows = [[escape(cell) for cell in row] for row in frame.itertuples(index=False)]
    escaped = pd.DataFrame(rows, columns=[escape(str(name)) for name in frame])
    return str(escaped.to_markdown(index=False, disable_numparse=True))


def _to_csv(frame: pd.DataFrame) -> str:
    """Format a table in which spreadsheets find no formula."""
    safe = frame.apply(lambda column: column if is_numeric_dtype(column.dtype) else column.map(_escape_formula))
    return str(safe.rename(columns=_escape_formula).to_csv(index=False))


def _escape_formula(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def _format_signed(value: float, unit: Unit) -> str:
    return f"{100 * value:+.1f}" if unit.is_share else f"{value:+.3g}"
