"""The procedure of a comparison in sentences: what runs shared, how long they trained, what was logged."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from lightning_znorm.compare.identity.provenance import Provenance
from lightning_znorm.compare.question.question import Question
from lightning_znorm.compare.question.syntax import format_value
from lightning_znorm.compare.report.formatting import as_code, enumerate_names, format_count, format_reason
from lightning_znorm.compare.runs.result import RunResult

_RANDOM_REMARK = (
    " Most likely a callback of the method draws random numbers; dropout masks and random augmentation differ from then"
    " on."
)


@dataclass
class Agreement:
    """Whether runs of several methods had the same hashes.

    Attributes:
        name: Short name of what was hashed.
        description: Full name of what was hashed.
        remark: Likely reason for a difference.
        cases: Number of settings and seeds with runs of several methods.
        differences: Setting and seed, methods and epoch of each case with different hashes.

    """

    name: str
    description: str
    remark: str = ""
    cases: int = 0
    differences: list[tuple[str, str]] = field(default_factory=list)

    @property
    def caveat(self) -> str:
        """The number of differences, and the first of them."""
        case, difference = self.differences[0]
        return (
            f"The {self.name} differ between methods in {len(self.differences)} of {self.cases} cases (first: {case}):"
            f" {difference}.{self.remark}"
        )


def find_agreements(question: Question, results: Sequence[RunResult]) -> list[Agreement]:
    """Compare initial weights, batches and random numbers of runs with the same setting and seed."""
    weights = Agreement("initial weights", "the initial weights")
    batches = Agreement("batches", "the first two batches of each epoch that they have in common")
    random = Agreement(
        "random numbers", "the states of all random number generators at each epoch's end", _RANDOM_REMARK
    )
    cases: dict[tuple[int, int], list[RunResult]] = {}
    for result in results:
        cases.setdefault((result.run.setting.number, result.run.seed), []).append(result)
    for (number, seed), runs in cases.items():
        case = ", ".join(filter(None, [str(question.settings[number]), f"seed {seed}"]))
        ordered = sorted(runs, key=lambda result: result.run.method.label != question.baseline)
        hashed = [result for result in ordered if result.weights_hash]
        _add_case(weights, case, [(result, _differs(hashed[0], result, "weights_hash")) for result in hashed])
        finished = [result for result in ordered if result.status == "finished"]
        epochs = [(result, *_compare_epochs(finished[0], result)) for result in finished]
        _add_case(batches, case, [(result, epoch) for result, epoch, _ in epochs])
        _add_case(random, case, [(result, epoch) for result, _, epoch in epochs])
    return [weights, batches, random]


def _add_case(agreement: Agreement, case: str, epochs: Sequence[tuple[RunResult, int | None]]) -> None:
    """Add the first epoch in which each result differs from the first result: 0 for none, -1 for an unknown one."""
    compared = [(result, epoch) for result, epoch in epochs[1:] if epoch is not None]
    agreement.cases += bool(compared)
    different = [(result, epoch) for result, epoch in compared if epoch]
    if different:
        methods = enumerate_names([as_code(result.run.method.label) for result, _ in different])
        epoch = min(epoch for _, epoch in different)
        difference = f"{methods} against {as_code(epochs[0][0].run.method.label)}"
        agreement.differences.append((case, difference + (f", from epoch {epoch} on" if epoch > 0 else "")))


def _differs(first: RunResult, other: RunResult, name: str) -> int:
    return -1 if getattr(first, name) != getattr(other, name) else 0


def _compare_epochs(first: RunResult, other: RunResult) -> tuple[int | None, int | None]:
    """Return from which epoch on batches and random numbers differ, for :func:`_add_case`; ``None`` if unknown."""
    epochs = list(zip(first.epoch_hashes, other.epoch_hashes, strict=False))
    random: int | None = 0 if epochs and all(hashes.random for hashes in epochs[0]) else None
    for epoch, (hashes, other_hashes) in enumerate(epochs, start=1):
        if hashes.batches != other_hashes.batches:
            return epoch, random
        if random == 0 and hashes.random != other_hashes.random:
            random = epoch
    if first.steps == other.steps and first.batches_hash and other.batches_hash:
        return _differs(first, other, "batches_hash"), random  # includes an epoch that was not completed
    return 0 if epochs else None, random


def have_seeds_no_effect(runs: pd.DataFrame) -> bool:
    """Return whether runs of different seeds had the same initial weights and batches."""
    finished = runs[(runs["status"] == "finished") & (runs["weights_hash"] != "")]
    groups = finished.groupby(["method", "setting"])
    seeds = groups["seed"].nunique()
    starts = groups.apply(lambda group: len(group[["weights_hash", "batches_hash"]].drop_duplicates()))
    return bool((seeds > 1).any() and (starts[seeds > 1] == 1).all())


def describe_agreements(agreements: Sequence[Agreement]) -> str:
    """Describe what the methods shared according to the hashes."""
    shared = [agreement.description for agreement in agreements if agreement.cases and not agreement.differences]
    different = [f"the {agreement.name}" for agreement in agreements if agreement.differences]
    unknown = [f"the {agreement.name}" for agreement in agreements if not agreement.cases]
    sentences = ["The methods share their seeds."]
    if shared:
        sentences.append(f"According to hashes, the finished runs also shared {enumerate_names(shared)}.")
    if different:
        sentences.append(f"They did not all share {enumerate_names(different)}; see the caveats above.")
    if unknown:
        sentences.append(f"Whether they shared {enumerate_names(unknown)} was not checked.")
    return " ".join(sentences)


def find_length_caveats(runs_by_method: Mapping[str, pd.DataFrame]) -> list[str]:
    """Return caveats about methods that were not trained, or not equally long."""
    caveats = []
    counted = {method: runs for method, runs in runs_by_method.items() if runs["steps"].notna().all()}
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


def describe_procedure(
    question: Question,
    runs: pd.DataFrame,
    settings: pd.DataFrame,
    summary: pd.DataFrame,
    agreements: Sequence[Agreement],
    axis: str,
) -> list[str]:
    """Describe how the runs were made and how to read the table, in paragraphs."""
    monitor, seeds = as_code(question.monitor), enumerate_names([str(seed) for seed in question.seeds])
    has_several = len(question.methods) > 1
    seeds = f"the seed {seeds}" if len(question.seeds) == 1 else f"the seeds {seeds}"
    making = []
    if len(runs) < len(question.runs):
        making.append(f"So far, {len(runs)} of {format_count(len(question.runs), 'run')} are done.")
    if question.has_one_setting:
        methods = "All methods were" if has_several else "The method was"
        shared = " shared" if has_several else ""
        making.append(f"{methods} trained at one{shared} setting, with {seeds}; no setting was selected.")
    else:
        method = "Each method" if has_several else "The method"
        best = "highest" if question.mode == "max" else "lowest"
        making.append(
            f"{method} was trained with every setting and {seeds}. Its selected setting is the one with the {best} mean"
            f" of {monitor} on the validation split, as last logged, among those with the fewest failed runs."
        )
        if settings.groupby("method")["tied"].sum().max() > 1:
            making.append(
                "Means that differ by less than a millionth are ties: of neighboring values the middle one is selected,"
                " otherwise the first."
            )
    test = as_code(question.test_monitor)
    making.append(f"The reported metric is {test} on the test split, with the weights after the last step.")
    finished = runs[runs["status"] == "finished"]
    if len(finished) and finished["steps"].notna().all():
        making.append(f"The finished runs were trained for {format_length(finished)}.")
    if resumed := int((runs["resumed"] > 0).sum()):
        making.append(f"After an interruption, {format_count(resumed, 'run')} resumed from a checkpoint.")
    if has_several:
        making.append(describe_agreements(agreements))
    reading = ["Intervals are Student's t over the seeds, at 95%."]
    tested = int((summary["p"].notna() & (summary.index != question.baseline)).sum())
    if has_several:
        correction = f", with p-values corrected for {tested} comparisons after Holm" if tested > 1 else ""
        reading.append(f"Differences are paired by seed and tested by a t-test{correction}.")
        reading.append(
            f"{axis.capitalize()}s are counted until the mean of {as_code(question.baseline)}'s final {monitor} is"
            " reached on the validation split."
        )
    reading.append('"ms per step" is the time between training batches, under the load of the machine at that time.')
    return [" ".join(making), " ".join(reading)]


def describe_context(runs: pd.DataFrame, provenances: Sequence[Provenance]) -> str:
    """Return versions, device and the duration of the runs."""
    items = [f"lightning-znorm {', '.join(map(str, provenances))}"]
    for column in ("torch", "lightning", "device"):
        values = sorted({str(value) for value in runs[column].dropna()})
        if values:
            items.append(", ".join(values) if column == "device" else f"{column} {', '.join(values)}")
    hours = runs["seconds"].sum() / 3600
    return "; ".join([*items, f"{format_value(round(hours, 2))} hours of runs"])
