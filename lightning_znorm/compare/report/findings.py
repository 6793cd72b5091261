"""The findings of a comparison: tables, verdicts, caveats."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from lightning_znorm.compare.identity.provenance import Provenance
from lightning_znorm.compare.question.question import Question
from lightning_znorm.compare.question.stages import Plan
from lightning_znorm.compare.report import procedure, tables
from lightning_znorm.compare.report.agreements import find_agreements, have_seeds_no_effect
from lightning_znorm.compare.report.summary import judge_methods, make_differences_table, make_summary
from lightning_znorm.compare.report.units import Unit, choose_unit
from lightning_znorm.compare.report.verdicts import Verdict, find_caveats, find_changes, make_verdicts
from lightning_znorm.compare.runs.result import RunResult
from lightning_znorm.compare.runs.schedule import Schedule


@dataclass(frozen=True)
class Findings:
    """Tables and sentences of a report.

    Attributes:
        plan: The runs.
        done: Number of runs with results.
        total: Number of all runs, as far as it can be known.
        is_finished: Whether all runs have results, and none will be added.
        runs: A row per run.
        trials: A row per method and setting that was tried in the selection.
        summary: A row per method.
        differences: A row per pair.
        curves: A row per validation of the confirmation.
        losses: A row per epoch of the confirmation.
        metrics: Means of the other test metrics, a row per method.
        verdicts: A verdict per method that is compared with the baseline.
        caveats: Sentences to know before believing the verdicts.
        methods: How the runs were made and judged, in paragraphs for a paper.
        notes: How to read the tables, in paragraphs.
        provenances: Versions and commits of this package that made the runs.
        unit: Format of the metric.
        axis: Time axis of validations, ``"epoch"`` or ``"step"``.

    """

    plan: Plan
    done: int
    total: int
    is_finished: bool
    runs: pd.DataFrame
    trials: pd.DataFrame
    summary: pd.DataFrame
    differences: pd.DataFrame
    curves: pd.DataFrame
    losses: pd.DataFrame
    metrics: pd.DataFrame
    verdicts: list[Verdict]
    caveats: list[str]
    methods: list[str]
    notes: list[str]
    provenances: list[Provenance]
    unit: Unit
    axis: str


def make_findings(
    question: Question, results: Sequence[RunResult], planned: Mapping[str, Any] | None = None
) -> Findings:
    """Make the tables and sentences of results.

    Args:
        question: The question.
        results: The results of its runs so far.
        planned: ``pairs``, ``width`` and ``margin`` as they were before the first run, if known.

    """
    schedule = Schedule(question)
    schedule.add(*results)
    plan = schedule.update()
    runs = tables.make_runs_table(question, results)
    confirming = [result for result in results if not question.is_selection(result.run.seed)]
    curves, losses = tables.make_curves_table(question, confirming), tables.make_losses_table(confirming)
    trials, differences = tables.make_trials_table(question, runs, plan), make_differences_table(question, runs)
    judgements = judge_methods(question, runs, differences)
    summary = make_summary(question, plan, runs, curves, judgements, schedule.is_done())
    unit, axis = choose_unit(question, runs), tables.choose_axis(curves)
    agreements = find_agreements(question, results)
    caveats = find_changes(question, planned or {}) + find_caveats(question, plan, runs, summary)
    caveats += [agreement.caveat for agreement in agreements if agreement.differences]
    caveats += procedure.find_length_caveats(question, runs)
    caveats += procedure.find_monitor_caveats(question, results)
    if have_seeds_no_effect(runs):
        caveats.append(
            "All seeds began with the same weights and saw the same batches: the module or its data sets a fixed seed."
            " The runs repeat each other, and neither intervals nor verdicts mean anything."
        )
    provenances = list(dict.fromkeys(result.provenance for result in results))
    if len(provenances) > 1:
        names = "; ".join(map(str, provenances))
        caveats.append(
            f"The runs were made by different versions or commits of this package ({names}); see `runs.csv`."
        )
    versions = {tuple(sorted({**result.versions, "lightning-znorm": ""}.items())) for result in results}
    if len(versions) > 1:
        caveats.append("The runs were made with different versions of PyTorch or Lightning; see `runs.csv`.")
    return Findings(
        plan=plan,
        done=schedule.count_done(),
        total=schedule.count_runs(),
        is_finished=schedule.is_done(),
        runs=runs,
        trials=trials,
        summary=summary,
        differences=differences,
        curves=curves,
        losses=losses,
        metrics=tables.make_metrics_table(question, confirming),
        verdicts=make_verdicts(question, plan, runs, summary, unit, trials),
        caveats=caveats,
        methods=procedure.describe_methods(question, plan, runs, agreements),
        notes=procedure.describe_reading(question, trials),
        provenances=provenances,
        unit=unit,
        axis=axis,
    )
