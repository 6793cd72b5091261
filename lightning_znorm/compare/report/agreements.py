"""Whether methods shared what they should: initial weights, batches, random numbers."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd

from lightning_znorm.compare.question.question import Question
from lightning_znorm.compare.report.formatting import as_code, enumerate_names
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
    cases: dict[str, list[RunResult]] = {}
    for result in results:
        # the settings of a confirmation differ, and should not matter to what is compared
        setting = str(result.run.setting) if question.is_selection(result.run.seed) else ""
        cases.setdefault(", ".join(filter(None, [setting, f"seed {result.run.seed}"])), []).append(result)
    for case, runs in cases.items():
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
