"""The procedure of a comparison in sentences: what was run and judged, how long, and how to read the tables."""

from collections.abc import Sequence

import pandas as pd

from lightning_znorm.compare.identity.provenance import Provenance
from lightning_znorm.compare.question.question import Question
from lightning_znorm.compare.question.stages import Plan
from lightning_znorm.compare.question.syntax import format_value
from lightning_znorm.compare.report.agreements import Agreement, describe_agreements
from lightning_znorm.compare.report.formatting import as_code, enumerate_names, format_count, format_reason
from lightning_znorm.compare.report.summary import find_good_range
from lightning_znorm.compare.runs.result import RunResult


def find_length_caveats(question: Question, runs: pd.DataFrame) -> list[str]:
    """Return caveats about methods that were not trained, or not equally long."""
    caveats = []
    finished = runs[(runs["stage"] == "confirmation") & (runs["status"] == "finished")]
    by_method = {method: finished[finished["method"] == method] for method in question.labels}
    counted = {method: own for method, own in by_method.items() if len(own) and own["steps"].notna().all()}
    untrained = [as_code(method) for method, runs in counted.items() if (runs["steps"] == 0).any()]
    if untrained:
        caveats.append(
            f"Runs of {enumerate_names(untrained)} made no training step. Is there an optimizer, and a batch to train"
            " on?"
        )
    if len({steps for runs in counted.values() for steps in runs["steps"]}) > 1:
        lengths = [f"{as_code(method)} for {format_length(runs)}" for method, runs in counted.items()]
        caveats.append(f"Not trained equally long: {enumerate_names(lengths)}. A difference may come from that alone.")
    return caveats


def format_length(runs: pd.DataFrame) -> str:
    """Format the steps of some runs and why they ended, such as ``4 to 9 steps (EarlyStopping)``."""
    low, high = int(runs["steps"].min()), int(runs["steps"].max())
    reasons = ", ".join(dict.fromkeys(format_reason(ended) for ended in runs["ended"].dropna()))
    steps = format_count(low, "step") if low == high else f"{low} to {high} steps"
    return f"{steps} ({reasons})" if reasons else steps


def find_monitor_caveats(question: Question, results: Sequence[RunResult]) -> list[str]:
    """Return caveats about a monitor that was not logged in the first or the last validation."""
    measured = [
        result for result in results if result.status == "finished" and result.find_validations(question.monitor)
    ]
    late, stale = [], []
    for result in measured:
        logged = result.find_validations(question.monitor)
        first, last = logged[0], logged[-1]
        run = f"{as_code(result.run.method.label)}, seed {result.run.seed}"
        if first is not result.curve[0]:
            late.append(f"{run}: from step {first.step} on")
        if last is not result.curve[-1]:
            stale.append(f"{run}: from step {last.step} of {result.steps}")
    caveats, name, runs = [], as_code(question.monitor), format_count(len(measured), "run")
    if stale:
        caveats.append(
            f"{name} was not logged in the last validation of {len(stale)} of {runs}, so that an older value is used"
            f" (for example {stale[0]})."
        )
    if late:
        caveats.append(
            f"{name} was not logged in the first validation of {len(late)} of {runs} (for example {late[0]})."
        )
    return caveats


def describe_methods(question: Question, plan: Plan, runs: pd.DataFrame, agreements: Sequence[Agreement]) -> list[str]:
    """Describe how the runs were made and judged, in paragraphs for a paper."""
    return [
        " ".join([*_describe_selection(question), *_describe_confirmation(question, plan)]),
        " ".join([*_describe_trainings(question, runs), *_describe_sharing(question, agreements)]),
        " ".join(_describe_analysis(question)),
    ]


def _describe_selection(question: Question) -> list[str]:
    design = question.design
    if question.has_one_setting:
        if len(question.methods) == 1:
            return ["There is one setting; none was selected."]
        shared = "at one shared setting" if question.has_shared_setting else "each at one setting that was given"
        return [f"All methods were trained {shared}; none was selected."]
    each = "For each method" if len(question.methods) > 1 else "For the method"
    parts = []
    first = question.search
    best = "highest" if question.mode == "max" else "lowest"
    if first is not None:
        further = ", each further one beyond the end at which the best one was, or else beside it"
        parts.append(
            f"{each}, {as_code(first.key)} was searched with {format_count(first.trials, 'value')}:"
            f" {min(5, first.trials)} in half decades about its start ({format_value(first.start)})"
            f"{further if first.trials > 5 else ''}."
        )
    else:
        counts = {found.trials_at_most for found in design.candidates.values()}
        parts.append(
            f"{each}, {format_count(max(counts), 'setting')} of"
            f" {enumerate_names(list(map(as_code, question.keys)))} were tried."
        )
    seeds = enumerate_names(list(map(str, design.seeds)))
    parts.append(
        f"Each was trained with one seed, and the three best with two more (the seeds {seeds}). The setting with the"
        f" {best} mean of {as_code(question.monitor)} on the validation split, as last logged, was selected; of equal"
        " ones the middle."
    )
    return parts


def _describe_confirmation(question: Question, plan: Plan) -> list[str]:
    design = question.design
    pairs = plan.pairs or design.least_pairs
    method = "Each method" if len(question.methods) > 1 else "The method"
    if question.has_one_setting:
        text = f"{method} was trained with {format_count(pairs, 'seed')}"
    else:
        text = f"{method}, at its selected setting, was then trained with {format_count(pairs, 'fresh seed')}"
    text += " that all methods share." if len(question.methods) > 1 else "."
    if design.width is not None:
        text += (
            f" Their number follows from the deviation of the first {design.least_pairs} differences, for an interval"
            f" of ±{format_value(design.width)}."
        )
    return [text]


def _describe_trainings(question: Question, runs: pd.DataFrame) -> list[str]:
    sentences = [
        f"The reported metric is {as_code(question.test_monitor)} on the test split, with the weights after the last"
        " step."
    ]
    finished = runs[runs["status"] == "finished"]
    if len(finished) and finished["steps"].notna().all():
        sentences.append(f"The finished runs were trained for {format_length(finished)}.")
    sentences.append(
        "A run is ended by inf or NaN in its weights alone, and then counts with the metric of these weights."
    )
    if resumed := int((runs["resumed"] > 0).sum()):
        sentences.append(f"After an interruption, {format_count(resumed, 'run')} resumed from a checkpoint.")
    return sentences


def _describe_sharing(question: Question, agreements: Sequence[Agreement]) -> list[str]:
    return [describe_agreements(agreements)] if len(question.methods) > 1 else []


def _describe_analysis(question: Question) -> list[str]:
    """Describe the tests and what the answers are conditional on."""
    if len(question.methods) < 2:
        return ["The interval is Student's t over the seeds, at 95%, for one split of the data."]
    sentences = [
        f"The analysis was fixed before the runs: differences to {as_code(question.baseline)} are paired by seed and"
        " judged by an exact two-sided sign-flip test of their mean (by random flips beyond 14 pairs) at 5%, corrected"
        " for the number of methods after Holm, with the 95% interval by inversion of the test."
    ]
    if question.margin is not None:
        sentences.append(
            f"A method is called equivalent if two one-sided tests show that it differs by less than"
            f" {format_value(question.margin)}, the margin that was given before."
        )
    sentences.append(
        "The test is exact for differences that are symmetric about their mean; for skewed ones its error may be 6 to"
        " 9%."
    )
    varied = question.design.varied
    split = (
        f"{as_code(varied)} was set to the seed, so that the answers cover what it varies"
        if varied
        else "All runs share one split of the data, and the answers are conditional on it"
    )
    settings = "the settings" if question.has_one_setting else "the selected settings"
    sentences.append(f"{split}; they always are conditional on {settings}.")
    return sentences


def describe_reading(question: Question, trials: pd.DataFrame) -> list[str]:
    """Describe how to read the tables, in paragraphs."""
    reading = []
    if len(question.methods) > 1:
        reading.append(
            "Seeds are paired for fairness more than for precision: metrics of two methods at one seed correlate"
            " little, often 0 to 0.4. The probability is that of being better in a pair, ties counted as halves, with"
            " Wilson's interval. Steps and seconds are counted until the median final validation metric of"
            f" {as_code(question.baseline)} is reached, as medians in which a run that misses it counts as infinite."
        )
    reading.append(
        'The interval of the test metric itself is Student\'s t. "ms per step" is the time between training batches,'
        " under the load of the machine at that time."
    )
    paragraphs = [" ".join(reading)]
    ranges = [
        f"{as_code(method)} from {good['setting'].iloc[0]} to {good['setting'].iloc[-1]}"
        for method in question.labels
        if len(good := find_good_range(question, trials, method)) > 1
    ]
    if ranges:
        within = "the margin" if question.margin is not None else "a tenth of the spread of all trials"
        paragraphs.append(
            f"Settings within {within} of the selected one, as a description of the selection:"
            f" {enumerate_names(ranges)}."
        )
    return paragraphs


def list_facts(
    question: Question, plan: Plan, runs: pd.DataFrame, provenances: Sequence[Provenance], configuration: dict[str, str]
) -> list[tuple[str, str]]:
    """Return what a reader asks for first: model, data, steps, seeds, hardware, versions, commit."""
    finished = runs[runs["status"] == "finished"]
    facts = [*configuration.items()]
    if len(finished) and finished["steps"].notna().all():
        facts.append(("training", format_length(finished)))
    confirmed = sorted({run.seed for run in plan.confirmation})
    selecting = sorted({run.seed for run in plan.selection})
    seeds = [f"{_format_seeds(selecting)} to select"] if selecting else []
    seeds += [f"{_format_seeds(confirmed)} to confirm"] if confirmed else []
    facts.append(("seeds", ", ".join(seeds)))
    for column, name in (
        ("device", "device"),
        ("threads", "threads per run"),
        ("torch", "PyTorch"),
        ("lightning", "Lightning"),
    ):
        values = sorted({str(value).removesuffix(".0") for value in runs[column].dropna()})
        if values:
            facts.append((name, ", ".join(values)))
    facts.append(("lightning-znorm", ", ".join(map(str, provenances))))
    facts.append(("runs", f"{len(runs)}, {format_value(round(runs['seconds'].sum() / 3600, 2))} hours"))
    return [(name, text) for name, text in facts if text]


def _format_seeds(seeds: Sequence[int]) -> str:
    is_range = len(seeds) > 2 and seeds[-1] - seeds[0] == len(seeds) - 1
    return f"{seeds[0]} to {seeds[-1]}" if is_range else enumerate_names(list(map(str, seeds)))
