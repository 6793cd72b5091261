"""The report of a comparison: `report.html`, `summary.md`, tables and pictures."""

import warnings
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from jinja2 import Environment, FunctionLoader, StrictUndefined
from pandas.api.types import is_numeric_dtype

from lightning_znorm.compare.files import write_atomically
from lightning_znorm.compare.question.question import Question
from lightning_znorm.compare.report import procedure, tables
from lightning_znorm.compare.report.findings import Findings
from lightning_znorm.compare.report.formatting import clean, escape, escape_prose
from lightning_znorm.compare.report.illustrations import list_illustrations
from lightning_znorm.compare.report.layout import format_metrics, format_summary, format_trials
from lightning_znorm.compare.report.svg import make_classes
from lightning_znorm.compare.report.verdicts import answer, ask, describe_scope
from lightning_znorm.compare.runs.recipes import format_command

_FACTS = ("model", "data")
_PICTURES = ("curves", "differences", "losses", "sweep", "sweep-*")


def write_report(question: Question, findings: Findings, folder: Path, about: Mapping[str, Any]) -> None:
    """Write the report into a folder.

    Args:
        question: The question.
        findings: Its answers.
        folder: The folder of the comparison.
        about: ``model`` and ``data``, their names; ``command``, which repeats the comparison; ``package`` and ``jobs``,
            for the commands that repeat single runs.

    """
    write_atomically(folder / "runs.csv", _to_csv(findings.runs.drop(columns=["setting", "number"])))
    columns = ["method", *findings.summary.columns]
    others = findings.metrics.rename(columns=lambda name: tables.name_metric_column(name, columns))
    write_atomically(folder / "summary.csv", _to_csv(findings.summary.join(others).reset_index()))
    pictures, classes = _write_pictures(question, findings, folder), make_classes(question.labels, question.baseline)
    context = _make_context(question, findings) | {
        "pictures": pictures,
        "legend": list(classes.items()),
        "classes": classes,
        "settings": format_trials(question, findings),
        "settings_heading": f"{question.monitor} of each setting in the selection ({question.direction})",
        "metrics": format_metrics(findings),
        "facts": procedure.list_facts(
            question, findings.plan, findings.runs, findings.provenances, {key: about.get(key, "") for key in _FACTS}
        ),
        "methods_paragraph": findings.methods,
        "notes": findings.notes,
        "bibtex": _read_template("methods.bib").strip(),
        "command": about.get("command", ""),
        "commands": list_commands(question, findings, folder, about),
    }
    write_atomically(folder / "report.html", render("report.html.j2", **context))
    write_atomically(folder / "summary.md", render("summary.md.j2", **context))


def find_report_files(folder: Path) -> list[Path]:
    """Return the existing files of a report."""
    names = ("report.html", "summary.md", "summary.csv", "runs.csv")
    return [folder / name for name in names if (folder / name).exists()] + _find_pictures(folder)


def _find_pictures(folder: Path) -> list[Path]:
    """Return the existing pictures of a report; the folder may have others."""
    return sorted(path for pattern in _PICTURES for path in folder.glob(f"{pattern}.svg"))


def render_answer(question: Question, findings: Findings) -> str:
    """Return the first part of the report in Markdown: answer, verdicts, table and caveats."""
    return render("answer.md.j2", **_make_context(question, findings)).rstrip()


def _make_context(question: Question, findings: Findings) -> dict[str, Any]:
    least = "" if findings.plan.is_complete else "at least "
    progress = "" if findings.is_finished else f"Unfinished: {findings.done} of {least}{findings.total} runs are done."
    return {
        "title": ask(question),
        "answer": answer(question, findings.verdicts),
        "scope": describe_scope(question),
        "direction": f"For {question.test_monitor}, {question.direction}",
        "verdicts": [verdict.sentence for verdict in findings.verdicts],
        "caveats": findings.caveats,
        "table": format_summary(question, findings),
        "progress": progress,
    }


class Picture(NamedTuple):
    """A picture of a report."""

    name: str
    caption: str
    svg: str


def _write_pictures(question: Question, findings: Findings, folder: Path) -> list[Picture]:
    """Write the pictures; one that cannot be drawn becomes a caveat."""
    for path in _find_pictures(folder):  # of an earlier report
        path.unlink()
    pictures = []
    for name, caption, draw in list_illustrations(question, findings):
        try:
            svg = draw()
        except Exception as error:
            reason = clean(f"{type(error).__name__}: {error}")[:200]
            findings.caveats.append(f"The picture `{name}.svg` could not be drawn ({reason}).")
            warnings.warn(
                f"The picture {folder / name}.svg could not be drawn ({reason}); it is left out.", stacklevel=2
            )
            continue
        if svg:
            pictures.append(Picture(name, caption, svg))
            write_atomically(folder / f"{name}.svg", svg)
    return pictures


def render(template: str, **context: Any) -> str:
    """Fill in a template."""
    environment = Environment(
        loader=FunctionLoader(_read_template),
        autoescape=".html" in template,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"markdown": to_markdown, "plain": escape, "prose": escape_prose, "clean": clean}
    return environment.get_template(template).render(**context)


def _read_template(name: str) -> str:
    return files("lightning_znorm.compare.report").joinpath("templates", name).read_text()


def list_commands(question: Question, findings: Findings, folder: Path, about: Mapping[str, Any]) -> list[str]:
    """Return the command that repeats the first confirming run of each method; none without a configuration."""
    if "package" not in about:
        return []
    options = {name: getattr(question, name) for name in ("monitor", "mode", "test_monitor")}
    options["jobs"] = about.get("jobs")
    seed = question.design.fresh_seeds[0]
    first = [run for run in findings.plan.confirmation if run.seed == seed]
    return [format_command(folder / "config.yaml", about["package"], run, options) for run in first]


def to_markdown(frame: pd.DataFrame) -> str:
    """Return a table of text in Markdown."""
    rows = [[escape(cell) for cell in row] for row in frame.itertuples(index=False)]
    escaped = pd.DataFrame(rows, columns=[escape(str(name)) for name in frame])
    return str(escaped.to_markdown(index=False, disable_numparse=True))


def _to_csv(frame: pd.DataFrame) -> str:
    """Format a table in which spreadsheets find no formula."""
    safe = frame.apply(lambda column: column if is_numeric_dtype(column.dtype) else column.map(_escape_formula))
    return str(safe.rename(columns=_escape_formula).to_csv(index=False))


def _escape_formula(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell
