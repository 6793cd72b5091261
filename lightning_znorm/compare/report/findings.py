"""All that the results of a comparison say: tables, verdicts, caveats."""

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
    """All tables of a comparison.

    Attributes:
        runs: A row per run.
        curves: A row per validation.
        losses: A row per epoch.
        settings: A row per method and setting.
        summary: A row per method; settings by their numbers.
        metrics: Means of the other metrics of the test, a row per method.
        verdicts: A sentence per method.
        caveats: What a reader must know before believing them.
        procedure: How the runs were made and are to be read, in paragraphs.
        provenances: Of which versions and commits of this package the runs are.
        unit: How the metric is written.
        axis: What validations are counted in, ``"epoch"`` or ``"step"``.

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
    """Make tables and sentences of the results of runs."""
    runs = tables.make_runs_table(question, results)
    curves, losses = tables.make_curves_table(question, results), tables.make_losses_table(results)
    settings = tables.make_settings_table(question, runs)
    summary = tables.make_summary(question, runs, settings, curves)
    unit, axis = choose_unit(question, runs), tables.choose_axis(curves)
    edges, agreements = tables.find_edges(question, settings), procedure.find_agreements(question, results)
    notes = find_caveats(question, runs, settings, summary, edges)
    notes += [agreement.caveat for agreement in agreements if agreement.differing]
    notes += procedure.find_length_caveats(tables.find_selected_runs(runs, summary)) + procedure.find_monitor_caveats(
        question, results
    )
    if procedure.are_seeds_ineffective(runs):
        notes.append(
            "All seeds began with the same weights and saw the same batches: something in the module or the data sets"
            " its own seed, so that the runs repeat each other, and neither intervals nor verdicts mean anything."
        )
    expected = len(question.runs)
    if len(results) < expected:
        notes.insert(0, f"Unfinished: {len(results)} of {expected} runs are done.")
    provenances = list(dict.fromkeys(result.provenance for result in results))
    if len(provenances) > 1:
        states = "; ".join(map(str, provenances))
        notes.append(f"The runs were made by different states of this package ({states}); see `runs.csv`.")
    versions = {tuple(sorted({**result.versions, "lightning-znorm": ""}.items())) for result in results}
    if len(versions) > 1:
        notes.append("The runs were made with different versions of torch or Lightning; see `runs.csv`.")
    metrics = tables.make_metrics_table(question, results, summary)
    verdicts = make_verdicts(question, summary, unit, edges)
    how = procedure.describe_procedure(question, runs, settings, summary, agreements, axis)
    return Findings(runs, curves, losses, settings, summary, metrics, verdicts, notes, how, provenances, unit, axis)
