"""The stages of a comparison: a setting is selected for each method, and then confirmed with fresh seeds.

What is to be run is a pure function of what has been run: not of the order in which runs ended, nor of who did them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np

from lightning_znorm.compare.question.candidates import Candidates
from lightning_znorm.compare.question.methods import Method
from lightning_znorm.compare.question.pairs import PILOT, count_pairs_for_width
from lightning_znorm.compare.question.run import Run, Setting


@dataclass(frozen=True)
class Design:
    """What is run, whatever comes of it.

    Attributes:
        methods: The methods.
        baseline: Label of the method that the others are compared with.
        candidates: The settings of each method, by its label.
        seeds: Seeds of the selection, as many as a finalist has.
        fresh_seeds: Seeds of the confirmation, in order; at least as many as the largest number of pairs.
        pairs: Number of pairs, unless ``width`` is given.
        width: Half the width of the interval of a difference that the number of pairs is to give, ``None`` to make
            ``pairs``.
        varied: A key that is set to the seed of each run, ``None`` for none.

    """

    methods: Sequence[Method]
    baseline: str
    candidates: Mapping[str, Candidates]
    seeds: Sequence[int]
    fresh_seeds: Sequence[int]
    pairs: int = 8
    width: float | None = None
    varied: str | None = None

    @property
    def least_pairs(self) -> int:
        """The number of pairs that are made whatever comes of them."""
        return self.pairs if self.width is None else PILOT

    def count_runs(self) -> int:
        """Return the number of runs that is to be expected: of the selection at most, of the confirmation at least."""
        selection = sum(self.candidates[method.label].count_runs() for method in self.methods)
        return selection + self.least_pairs * len(self.methods)

    def make_run(self, method: Method, setting: Setting, seed: int) -> Run:
        """Return a run."""
        return Run(method, setting, seed, self.varied)


@dataclass(frozen=True)
class Plan:
    """The runs that are known to be needed.

    Attributes:
        selection: Runs that select a setting for each method.
        confirmation: Runs of the selected settings, with fresh seeds that all methods share.
        selected: The selected setting by the label of the method; without methods that have no score at all.
        unsettled: Labels of the methods whose selected setting is at an end of what was tried.
        is_complete: Whether no run will be added.

    """

    selection: list[Run]
    confirmation: list[Run] = field(default_factory=list)
    selected: Mapping[str, Setting] = field(default_factory=dict)
    unsettled: list[str] = field(default_factory=list)
    is_complete: bool = False

    @property
    def runs(self) -> list[Run]:
        """All runs, in the order in which they are made."""
        return self.selection + self.confirmation

    @property
    def pairs(self) -> int:
        """Number of seeds of the confirmation, as far as it is known."""
        return len({run.seed for run in self.confirmation})


def make_plan(design: Design, validation: Mapping[str, float], test: Mapping[str, float]) -> Plan:
    """Return the runs that follow from finished ones.

    Args:
        design: What is run.
        validation: Validation metric of each finished run by its name (``str(run)``), higher being better, NaN for
            none.
        test: The same of the test metric.

    """
    selections = [_select(method, design, validation) for method in design.methods]
    # methods in turn, so that they advance side by side
    runs = [run for turn in zip_longest(*(found.runs for found in selections)) for run in turn if run is not None]
    if not all(selection.is_complete for selection in selections):
        return Plan(runs)
    pairs = list(zip(design.methods, selections, strict=True))
    selected = {method.label: found.setting for method, found in pairs if found.setting is not None}
    unsettled = [method.label for method, found in pairs if method.label in selected and not found.is_settled]
    methods = [method for method in design.methods if method.label in selected]

    def confirm(count: int) -> list[Run]:
        seeds = design.fresh_seeds[:count]
        return [design.make_run(method, selected[method.label], seed) for seed in seeds for method in methods]

    if design.baseline not in selected or len(methods) < min(2, len(design.methods)):
        return Plan(runs, [], selected, unsettled, is_complete=True)
    if design.width is None:
        return Plan(runs, confirm(design.pairs), selected, unsettled, is_complete=True)
    first = confirm(PILOT)
    if not all(str(run) in test for run in first):
        return Plan(runs, first, selected, unsettled)
    metrics = {
        method.label: [test[str(run)] for run in first if run.method.label == method.label] for method in methods
    }
    counts = [
        _count_pairs(np.subtract(values, metrics[design.baseline]).tolist(), design.width)
        for label, values in metrics.items()
        if label != design.baseline
    ]
    return Plan(runs, confirm(max(counts, default=PILOT)), selected, unsettled, is_complete=True)


def _count_pairs(differences: Sequence[float], width: float) -> int:
    """Return the number of pairs that follows from the first ones, NaN for one without a metric."""
    values = np.asarray(differences)[np.isfinite(differences)]
    if len(values) < 2:
        return PILOT
    return max(PILOT, count_pairs_for_width(float(values.std(ddof=1)), width, pilot=len(values)))


@dataclass(frozen=True)
class _Selection:
    runs: list[Run]
    is_complete: bool
    setting: Setting | None = None
    is_settled: bool = False


def _select(method: Method, design: Design, validation: Mapping[str, float]) -> _Selection:
    """Return the runs of a method's selection, as far as they are known, and its outcome."""
    candidates = design.candidates[method.label]
    if candidates.only is not None:
        return _Selection([], True, candidates.only, is_settled=True)
    runs: list[Run] = []
    scores: dict[int, list[float]] = {}

    def are_finished(positions: Sequence[int], seeds: Sequence[int]) -> bool:
        """Add runs, and their scores if all of them are finished."""
        added = [
            (position, design.make_run(method, candidates.setting_at(position), seed))
            for seed in seeds
            for position in positions
        ]
        runs.extend(run for _, run in added)
        if not all(str(run) in validation for _, run in added):
            return False
        for position, run in added:
            scores.setdefault(position, []).append(validation[str(run)])
        return True

    while positions := candidates.propose(scores):
        if not are_finished(positions, design.seeds[:1]):
            return _Selection(runs, is_complete=False)
    finalists = candidates.list_finalists(scores)
    if len(finalists) > 1 and not are_finished(finalists, design.seeds[1 : candidates.seeds]):
        return _Selection(runs, is_complete=False)
    best = candidates.select({position: scores[position] for position in finalists})
    if best is None:
        return _Selection(runs, is_complete=True)
    return _Selection(runs, True, candidates.setting_at(best), candidates.is_settled(best, scores))
