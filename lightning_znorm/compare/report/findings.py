"""The findings of a comparison: tables, verdicts, caveats."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from lightning_znorm.compare.identity.provenance import Provenance
from lightning_znorm.compare.question.question import Question
from lightning_znorm.compare.report import procedure, tables
from lightning_znorm.compare.report.verdicts import Unit, choose_unit, find_caveats, make_verdicts
from lightning_znorm.compare.runs.result import RunResult


@dataclass(frozen=True)
class Findings:
    """Tables and sentences of a report.

    Attributes:
        runs: A row per run.
        curves: A row per validation.
        losses: A row per epoch.
        settings: A row per method and setting.
        summary: A row per method, with the number of its selected setting.
        metrics: Means of the other test metrics, a row per method.
        verdicts: A sentence per method.
        caveats: Sentences to know before believing the verdicts.
        procedure: How the runs were made and how to read the tables, in paragraphs.
        provenances: Versions and commits of this package that made the runs.
        unit: Format of the metric.
        axis: Time axis of validations, ``"epoch"`` or ``"step"``.

    """

    runs: pd.DataFrame
    curves: pd.DataFrame
    losses: pd.DataFrame
    settings: pd.DataFrame
    summary: pd.DataFrame
    metrics: pd.DataFrame
    verdicts: list[str]
    caveats: list[str]
    procedure: list[str]
    provenances: list[Provenance]
    unit: Unit
    axis: str


def make_findings(question: Question, results: Sequence[RunResult]) -> Findings:
    """Make the tables and sentences of results."""
    runs = tables.make_runs_table(question, results)
    curves, losses = tables.make_curves_table(question, results), tables.make_losses_table(results)
    settings = tables.make_settings_table(question, runs)
    summary = tables.make_summary(question, runs, settings, curves)
    unit, axis = choose_unit(question, runs), tables.choose_axis(curves)
    edges, agreements = tables.find_edges(question, settings), procedure.find_agreements(question, results)
    caveats = find_caveats(question, runs, settings, summary, edges)
    caveats += [agreement.caveat for agreement in agreements if agreement.differences]
    caveats += procedure.find_length_caveats(tables.find_selected_runs(runs, summary))
    caveats += procedure.find_monitor_caveats(question, results)
    if procedure.have_seeds_no_effect(runs):
        caveats.append(
            "All seeds began with the same weights and saw the same batches: the module or its data sets a fixed seed."
            " The runs repeat each other, and neither intervals nor verdicts mean anything."
        )
    expected = len(question.runs)
    if len(results) < expected:
        caveats.insert(0, f"Unfinished: {len(results)} of {expected} runs are done.")
    provenances = list(dict.fromkeys(result.provenance for result in results))
    if len(provenances) > 1:
        names = "; ".join(map(str, provenances))
        caveats.append(
            f"The runs were made by different versions or commits of this package ({names}); see `runs.csv`."
        )
    versions = {tuple(sorted({**result.versions, "lightning-znorm": ""}.items())) for result in results}
    if len(versions) > 1:
        caveats.append("The runs were made with different versions of PyTorch or Lightning; see `runs.csv`.")
    metrics = tables.make_metrics_table(question, results, summary)
    verdicts = make_verdicts(question, summary, unit, edges)
    paragraphs = procedure.describe_procedure(question, runs, settings, summary, agreements, axis)
    return Findings(
        runs, curves, losses, settings, summary, metrics, verdicts, caveats, paragraphs, provenances, unit, axis
    )
