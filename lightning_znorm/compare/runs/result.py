"""What comes out of a run, and how it is written to a file."""

import contextlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from lightning_znorm import __version__
from lightning_znorm.compare.files import as_json
from lightning_znorm.compare.identity.provenance import Provenance, find_provenance
from lightning_znorm.compare.question.plan import Run

SCHEMA = 1
Status = Literal["finished", "diverged", "crashed"]

_PACKAGES = ("torch", "lightning", "pytorch-lightning")
# what a file must have; one that lacks it was damaged, and its run is made again
_FORM = {"status": str, "curve": list, "test": dict, "versions": dict}


@dataclass(frozen=True)
class Validation:
    """One validation of a run.

    Attributes:
        epoch: Epochs that were trained before it, ``None`` within one of unknown length.
        step: Optimizer steps that were made before it.
        metrics: What was logged in it.

    """

    epoch: float | None
    step: int
    metrics: Mapping[str, float | None]


@dataclass(frozen=True)
class EpochHashes:
    """Hashes at the end of an epoch.

    Attributes:
        batches: Of the first two batches of each epoch so far.
        random: Of the states of all random number generators, ``None`` if it is not known.

    """

    batches: str
    random: str | None = None


@dataclass(frozen=True)
class Seconds:
    """How long the parts of a run took, in seconds.

    Attributes:
        make: From the start to the first step: module, data, Trainer.
        fit: The training, with its validations.
        all: Everything.
        step: A training step: the median of the epochs' means, ``None`` where no epoch had two batches.
        batch: The last batch of ``validate`` and ``test``.

    """

    make: float = 0.0
    fit: float = 0.0
    all: float = 0.0
    step: float | None = None
    batch: Mapping[str, float] = field(default_factory=dict)


@dataclass
class RunResult:
    """What came out of a run, or of its trial.

    Attributes:
        run: Which one.
        status: ``"diverged"`` if weights became inf or NaN, ``"crashed"`` after any other error.
        error: What went wrong.
        is_explained: Whether the error is meant for the user, so that no log is needed to understand it.
        started: When, in ISO format.
        resumed: How often it was resumed from a checkpoint after an interruption.
        ended: Why the training ended.
        stopped_early: Whether that was before ``max_epochs`` and ``max_steps``.
        steps: Optimizer steps that were made.
        epochs: Epochs that were trained, ``None`` if that is not known.
        curve: The validations.
        train_loss: Mean training loss of each epoch.
        test: Metrics of the test.
        names: Names of all that was logged in validations.
        weights_hash: SHA-256 of the weights and buffers before the first step.
        batches_hash: SHA-256 of the first two batches of each epoch.
        epoch_hashes: Hashes at the end of each epoch.
        seconds: How long its parts took; ``None`` of a process that died.
        device: Name of the accelerator, or ``"cpu"``.
        versions: Versions of this package, torch and Lightning.
        commit: Commit of this package.
        dirty: Whether its files differed from that commit.
        unstable: What the run depends on and no other process recognizes.
        missing: Of a trial: steps and loaders that a comparison needs and nobody has written.
        lengths: Of a trial: batches per epoch of each split, ``None`` where it is not known.

    """

    run: Run
    status: Status = "finished"
    error: str | None = None
    is_explained: bool = False
    started: str | None = None
    resumed: int = 0
    ended: str | None = None
    stopped_early: bool = False
    steps: int | None = None
    epochs: float | None = None
    curve: list[Validation] = field(default_factory=list)
    train_loss: list[float | None] = field(default_factory=list)
    test: dict[str, float | None] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    weights_hash: str = ""
    batches_hash: str = ""
    epoch_hashes: list[EpochHashes] = field(default_factory=list)
    seconds: Seconds | None = None
    device: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    commit: str | None = None
    dirty: bool | None = None
    unstable: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    lengths: dict[str, float | None] = field(default_factory=dict)

    @classmethod
    def of_this_process(cls, run: Run, **values: Any) -> "RunResult":
        """Return a result of the code that this process runs."""
        provenance = find_provenance()
        return cls(run, versions=find_versions(), commit=provenance.commit, dirty=provenance.dirty, **values)

    @classmethod
    def from_json(cls, run: Run, content: Any) -> "RunResult | None":
        """Return a run's result as it was before :meth:`to_json`, ``None`` if the content is none."""
        if not isinstance(content, dict) or content.get("schema") != SCHEMA:
            return None
        if not all(isinstance(content.get(name), kind) for name, kind in _FORM.items()):
            return None
        if not all(isinstance(metric, (int, float, type(None))) for metric in content["test"].values()):
            return None
        names = {entry.name for entry in fields(cls)} - {"run"}
        values = {name: value for name, value in content.items() if name in names and value is not None}
        values["curve"] = [Validation(**row) for row in values["curve"]]
        values["epoch_hashes"] = [EpochHashes(**entry) for entry in values.get("epoch_hashes", [])]
        if "seconds" in values:
            values["seconds"] = Seconds(**values["seconds"])
        return cls(run, **values)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON takes it, with what it is a result of."""
        run = {
            "schema": SCHEMA,
            "method": self.run.method.label,
            "identity": self.run.method.identity(),
            "setting": dict(self.run.setting.values),
            "seed": self.run.seed,
        }
        values = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "run"}
        values["curve"] = [asdict(row) for row in self.curve]
        values["epoch_hashes"] = [asdict(entry) for entry in self.epoch_hashes]
        values["seconds"] = None if self.seconds is None else asdict(self.seconds)
        content: dict[str, Any] = as_json(run | values)
        return content

    @property
    def provenance(self) -> Provenance:
        """The code of this package that made it."""
        return Provenance(self.versions.get("lightning-znorm"), self.commit, self.dirty)

    def rows_with(self, metric: str) -> list[Validation]:
        """Return the validations in which a metric was logged."""
        return [row for row in self.curve if metric in row.metrics]


def find_versions() -> dict[str, str]:
    """Return the versions of the packages that matter."""
    versions = {"lightning-znorm": __version__}  # of the code that runs, whatever else is installed
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions
