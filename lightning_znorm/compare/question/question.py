"""The question that a comparison answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_znorm.compare.question.candidates import Candidates, Listed
from lightning_znorm.compare.question.directions import Mode
from lightning_znorm.compare.question.methods import Method
from lightning_znorm.compare.question.run import Run, Setting
from lightning_znorm.compare.question.search import Crossed, Search
from lightning_znorm.compare.question.stages import Design


@dataclass(frozen=True)
class Question:
    """What is compared, and by which metrics.

    Attributes:
        design: What is run.
        keys: The swept keys.
        monitor: Validation metric that selects each method's setting.
        mode: Whether low or high values of the metrics are better.
        test_monitor: Test metric that is reported.
        margin: The smallest difference that matters, ``None`` if unknown.

    """

    design: Design
    keys: Sequence[str]
    monitor: str
    mode: Mode
    test_monitor: str
    margin: float | None = None

    @property
    def methods(self) -> Sequence[Method]:
        """The gradient transforms."""
        return self.design.methods

    @property
    def labels(self) -> list[str]:
        """Labels of the methods."""
        return [method.label for method in self.methods]

    @property
    def baseline(self) -> str:
        """Label of the method that the others are compared with."""
        return self.design.baseline

    @property
    def has_one_setting(self) -> bool:
        """Whether no method has several settings, so that none is selected."""
        return all(candidates.only is not None for candidates in self.design.candidates.values())

    @property
    def has_shared_setting(self) -> bool:
        """Whether all methods have the same single setting."""
        settings = [candidates.only for candidates in self.design.candidates.values()]
        return None not in settings and len({*map(str, settings)}) == 1

    @property
    def search(self) -> Search | None:
        """The search of the first method that has one, ``None`` if all settings are listed."""
        for candidates in self.design.candidates.values():
            found = candidates.searches[0] if isinstance(candidates, Crossed) else candidates
            if isinstance(found, Search):
                return found
        return None

    @property
    def direction(self) -> str:
        """Which values of the metrics are better, in words."""
        return "higher is better" if self.mode == "max" else "lower is better"

    def is_selection(self, seed: int) -> bool:
        """Return whether a run with a seed belongs to the selection, and not to the confirmation."""
        return seed in self.design.seeds

    def to_json(self) -> dict[str, Any]:
        """Return the question for JSON, with methods by their labels and identities."""
        design = self.design
        return {
            "methods": self.labels,
            "identities": {method.label: method.identity for method in self.methods},
            "baseline": self.baseline,
            "candidates": {label: candidates.description for label, candidates in design.candidates.items()},
            "seeds": [*design.seeds],
            "fresh_seeds": [*design.fresh_seeds],
            **{name: getattr(design, name) for name in ("pairs", "width", "varied")},
            **{name: getattr(self, name) for name in ("keys", "monitor", "mode", "test_monitor", "margin")},
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Question":
        """Return the question of :meth:`to_json`, for a report: its methods have labels and identities alone."""
        design = Design(
            methods=[Method.of_identity(label, content["identities"][label]) for label in content["methods"]],
            baseline=content["baseline"],
            candidates={label: _read_candidates(found) for label, found in content["candidates"].items()},
            **{name: content[name] for name in ("seeds", "fresh_seeds", "pairs", "width", "varied")},
        )
        return cls(design, **{name: content[name] for name in ("keys", "monitor", "mode", "test_monitor", "margin")})

    def list_first_runs(self) -> list[Run]:
        """Return a run of each method at the setting that it tries first."""
        design = self.design
        seed = design.fresh_seeds[0] if self.has_one_setting else design.seeds[0]
        return [design.make_run(method, design.candidates[method.label].first, seed) for method in self.methods]


def _read_candidates(content: Mapping[str, Any]) -> Candidates:
    if "searches" in content:
        return Crossed([_read_search(search) for search in content["searches"]])
    if "settings" in content:
        return Listed([Setting(number, values) for number, values in enumerate(content["settings"])])
    return _read_search(content)


def _read_search(content: Mapping[str, Any]) -> Search:
    return Search(**{name: value for name, value in content.items() if value is not None})  # JSON has no inf
