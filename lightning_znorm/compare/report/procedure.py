"""How the runs were made, in sentences: what they shared, how long they trained, what was logged."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from lightning_znorm.compare.identity.provenance import Provenance
from lightning_znorm.compare.question.question import Question
from lightning_znorm.compare.question.syntax import format_value
from lightning_znorm.compare.report.formatting import as_code, format_count, format_reason, join_names
from lightning_znorm.compare.runs.result import RunResult

_RANDOM_REMARK = (
    " Most likely a callback of the method draws random numbers; dropout masks and random augmentation differ from then"
    " on."
)


@dataclass
class Agreement:
    """Whether the methods shared something, by its hashes.

    Attributes:
        name: What it is.
        hashed: What the hash is of.
        remark: Why it may differ.
        cases: Number of settings and seeds in which runs of several methods could be compared.
        differing: Where they differ: setting and seed, the methods, from which epoch on.

    """

    name: str
    hashed: str
    remark: str = ""
    cases: int = 0
    differing: list[tuple[str, str]] = field(default_factory=list)

    @property
    def caveat(self) -> str:
        """Where methods differ."""
        where, how = self.differing[0]
        return (
            f"Not the same for all methods: the {self.name} differ between methods in {len(self.differing)} of"
            f" {self.cases} cases (first: {where}): {how}.{self.remark}"
        )


def find_agreements(question: Question, results: Sequence[RunResult]) -> list[Agreement]:
    """Compare initial weights, batches and random numbers of the runs that have a setting and a seed in common."""
    weights = Agreement("initial weights", "the initial weights")
    batches = Agreement("batches", "the first two batches of each epoch that they have in common")
    random = Agreement(
        "random numbers", "the states of all random number generators at each epoch's end", _RANDOM_REMARK
    )
    cases: dict[tuple[int, int], list[RunResult]] = {}
    for result in results:
        cases.setdefault((result.run.setting.number, result.run.seed), []).append(result)
    for (number, seed), alike in cases.items():
        where = ", ".join(filter(None, [str(question.settings[number]), f"seed {seed}"]))
        ordered = sorted(alike, key=lambda result: result.run.method.label != question.baseline)
        hashed = [result for result in ordered if result.weights_hash]
        _note(weights, where, [(result, _differs(hashed[0], result, "weights_hash")) for result in hashed])
        finished = [result for result in ordered if result.status == "finished"]
        epochs = [(result, *_compare_epochs(finished[0], result)) for result in finished]
        _note(batches, where, [(result, epoch) for result, epoch, _ in epochs])
        _note(random, where, [(result, epoch) for result, _, epoch in epochs])
    return [weights, batches, random]


def _note(agreement: Agreement, where: str, epochs: Sequence[tuple[RunResult, int | None]]) -> None:
    """Note the first epoch in which each result differs from the first one: 0 for none, -1 for one not known."""
    known = [(result, epoch) for result, epoch in epochs[1:] if epoch is not None]
    agreement.cases += bool(known)
    differing = [(result, epoch) for result, epoch in known if epoch]
    if differing:
        methods = join_names([as_code(result.run.method.label) for result, _ in differing])
        since = min(epoch for _, epoch in differing)
        first = as_code(epochs[0][0].run.method.label)
        how = f"{methods} against {first}" + (f", from epoch {since} on" if since > 0 else "")
        agreement.differing.append((where, how))


def _differs(first: RunResult, other: RunResult, name: str) -> int:
    return -1 if getattr(first, name) != getattr(other, name) else 0


def _compare_epochs(first: RunResult, other: RunResult) -> tuple[int | None, int | None]:
    """Return from which epoch on batches and random numbers differ, as :func:`_note` takes it, ``None`` if unknown."""
    epochs = list(zip(first.epoch_hashes, other.epoch_hashes, strict=False))
    random: int | None = 0 if epochs and all(hashes.random for hashes in epochs[0]) else None
    for epoch, (mine, its) in enumerate(epochs, start=1):
        if mine.batches != its.batches:
            return epoch, random
        if random == 0 and mine.random != its.random:
            random = epoch
    if first.steps == other.steps and first.batches_hash and other.batches_hash:
        return _differs(first, other, "batches_hash"), random  # has the batches of an epoch that was not completed, too
    return 0 if epochs else None, random


def are_seeds_ineffective(runs: pd.DataFrame) -> bool:
    """Say whether runs of different seeds had the same first weights and the same batches."""
    finished = runs[(runs["status"] == "finished") & (runs["weights_hash"] != "")]
    groups = finished.groupby(["method", "setting"])
    seeds = groups["seed"].nunique()
    kinds = groups.apply(lambda group: len(group[["weights_hash", "batches_hash"]].drop_duplicates()))
    return bool((seeds > 1).any() and (kinds[seeds > 1] == 1).all())


def describe_agreements(agreements: Sequence[Agreement]) -> str:
    """Say what the hashes show of what the methods shared, and nothing else."""
    same = [agreement.hashed for agreement in agreements if agreement.cases and not agreement.differing]
    other = [f"the {agreement.name}" for agreement in agreements if agreement.differing]
    unknown = [f"the {agreement.name}" for agreement in agreements if not agreement.cases]
    sentences = ["The methods share their seeds."]
    if same:
        sentences.append(f"By hashes, the runs that finished also shared {join_names(same)}.")
    if other:
        sentences.append(f"They did not all share {join_names(other)}; see the notes above.")
    if unknown:
        sentences.append(f"Whether they shared {join_names(unknown)} was not checked.")
    return " ".join(sentences)


def find_length_caveats(chosen: Mapping[str, pd.DataFrame]) -> list[str]:
    """Return caveats about methods that were not trained, or not equally long."""
    caveats = []
    known = {method: runs for method, runs in chosen.items() if runs["steps"].notna().all()}
    untrained = [as_code(method) for method, runs in known.items() if (runs["steps"] == 0).any()]
    if untrained:
        caveats.append(
            f"Runs of {join_names(untrained)} made no training step. Is there an optimizer, and a batch to train on?"
        )
    if len({steps for runs in known.values() for steps in runs["steps"]}) > 1:
        lengths = [f"{as_code(method)} for {format_length(runs)}" for method, runs in known.items()]
        caveats.append(f"Not trained equally long: {join_names(lengths)}. A difference may come from that alone.")
    return caveats


def format_length(runs: pd.DataFrame) -> str:
    """Return the steps of some runs and why they ended, such as ``4 to 9 steps (EarlyStopping)``."""
    low, high = int(runs["steps"].min()), int(runs["steps"].max())
    reasons = dict.fromkeys(format_reason(ended) for ended in runs["ended"].dropna())
    why = f" ({', '.join(reasons)})" if reasons else ""
    return (format_count(low, "step") if low == high else f"{low} to {high} steps") + why


def find_monitor_caveats(question: Question, results: Sequence[RunResult]) -> list[str]:
    """Return caveats about a monitor that was first logged late, or was not logged at the end."""
    measured = [result for result in results if result.status == "finished" and result.rows_with(question.monitor)]
    late, stale = [], []
    for result in measured:
        curve, logged = result.curve, result.rows_with(question.monitor)
        run = f"{as_code(result.run.method.label)}, seed {result.run.seed}"
        if logged[0] is not curve[0]:
            late.append(f"{run}: at step {logged[0].step}")
        if logged[-1] is not curve[-1]:
            end = curve[-1].step if result.steps is None else result.steps
            stale.append(f"{run}: from step {logged[-1].step} of {end}")
    caveats, name, runs = [], as_code(question.monitor), format_count(len(measured), "run")
    if stale:
        caveats.append(
            f"{name} was not logged in the last validation of {len(stale)} of {runs}, so that an older value of it is"
            f" used (first: {stale[0]})."
        )
    if late:
        caveats.append(f"{name} was not logged before a later validation in {len(late)} of {runs} (first: {late[0]}).")
    return caveats


def describe_procedure(
    question: Question,
    runs: pd.DataFrame,
    settings: pd.DataFrame,
    summary: pd.DataFrame,
    agreements: Sequence[Agreement],
    axis: str,
) -> list[str]:
    """Return how the comparison was made, in paragraphs."""
    monitor, seeds = as_code(question.monitor), join_names([str(seed) for seed in question.seeds])
    several = len(question.methods) > 1
    who = "All methods were" if several else "The method was"
    given = f"the seed {seeds}" if len(question.seeds) == 1 else f"the seeds {seeds}"
    done = (
        f"So far, {len(runs)} of {format_count(len(question.runs), 'run')} are done. "
        if len(runs) < len(question.runs)
        else ""
    )
    if question.is_shared:
        making = f"{done}{who} trained at one{' shared' * several} setting, with {given}; no setting was selected."
    else:
        best = "highest" if question.mode == "max" else "lowest"
        making = (
            f"{done}{'Each' if several else 'The'} method was trained with every setting and {given}. Its selected"
            f" setting is, among those whose runs failed least, the one with the {best} mean of {monitor} on the"
            " validation split, as last logged."
        )
        if settings.groupby("method")["tied"].sum().max() > 1:
            making += (
                " Means that differ by less than a millionth are ties: of neighboring values the middle one is"
                " selected, otherwise the first."
            )
    making += f" What is reported is {as_code(question.test_monitor)} on the test split after the last step."
    finished = runs[runs["status"] == "finished"]
    if len(finished) and finished["steps"].notna().all():
        making += f" The runs that finished were trained for {format_length(finished)}."
    if resumed := int((runs["resumed"] > 0).sum()):
        making += f" Of them, {resumed} went on from a checkpoint after an interruption."
    if several:
        making += f" {describe_agreements(agreements)}"
    reading = "Intervals are Student's t over the seeds, at 95%."
    tested = int((summary["p"].notna() & (summary.index != question.baseline)).sum())
    if several:
        reading += " Differences are paired by seed and tested by a t-test"
        reading += f", with p-values corrected for {tested} comparisons after Holm." if tested > 1 else "."
        reading += (
            f" {axis.capitalize()}s are counted until the mean of {as_code(question.baseline)}'s final {monitor} is"
            " reached on the validation split."
        )
    reading += ' "ms per step" is the time between training batches, next to whatever else the machine was doing.'
    return [making, reading]


def describe_context(runs: pd.DataFrame, provenances: Sequence[Provenance]) -> str:
    """Return versions, device and the time that the runs took."""
    parts = [f"lightning-znorm {', '.join(map(str, provenances))}"]
    for column in ("torch", "lightning", "device"):
        values = sorted({str(value) for value in runs[column].dropna()})
        if values:
            parts.append(", ".join(values) if column == "device" else f"{column} {', '.join(values)}")
    hours = runs["seconds"].sum() / 3600
    return "; ".join([*parts, f"{format_value(round(hours, 2))} hours of runs"])
