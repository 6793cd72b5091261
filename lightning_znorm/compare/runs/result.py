"""The result of a run, and its form in a file."""

import contextlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, get_args

from lightning_znorm import __version__
from lightning_znorm.compare.files import as_json
from lightning_znorm.compare.identity.provenance import Provenance, find_provenance
from lightning_znorm.compare.question.run import Run

SCHEMA = 2
Status = Literal["finished", "diverged", "crashed"]

_PACKAGES = ("torch", "lightning", "pytorch-lightning")
# keys of a file that is not damaged
_REQUIRED = {"status", "curve", "test", "versions"}


@dataclass(frozen=True)
class Validation:
    """One validation of a run.

    Attributes:
        epoch: Number of epochs before it, ``None`` within one of unknown length.
        step: Number of optimizer steps before it.
        metrics: Metrics that were logged in it.

    """

    epoch: float | None
    step: int
    metrics: Mapping[str, float | None]


@dataclass(frozen=True)
class EpochHashes:
    """Hashes at the end of an epoch.

    Attributes:
        batches: Hash of the first two batches of each epoch so far.
        random: Hash of the states of all random number generators, ``None`` if unknown.

    """

    batches: str
    random: str | None = None


@dataclass(frozen=True)
class Seconds:
    """Durations in a run, in seconds.

    Attributes:
        make: Making Trainer, module and data.
        fit: Training, with its validations.
        all: The whole run.
        step: A training step: the median of the epochs' means, ``None`` if no epoch had two batches.
        batch: The last batch of ``validate`` and ``test``.

    """

    make: float = 0.0
    fit: float = 0.0
    all: float = 0.0
    step: float | None = None
    batch: Mapping[str, float] = field(default_factory=dict)


@dataclass
class RunResult:
    """The result of a run, or of its trial.

    Attributes:
        run: The run.
        status: ``"diverged"`` if a weight became inf or NaN, which ends the training and is validated and tested like
            any other; ``"crashed"`` after an error.
        error: Message of the error.
        is_explained: Whether the message is meant for the user and needs no log.
        rank: Rank of the process that failed first, whose message it is; 0 if none did.
        started: Time of the start, in ISO format.
        resumed: Number of times it was resumed from a checkpoint.
        ended: Why the training ended.
        stopped_early: Whether that was before ``max_epochs`` and ``max_steps``.
        steps: Number of optimizer steps.
        epochs: Number of epochs, ``None`` if unknown.
        curve: The validations.
        train_loss: Mean training loss of each epoch.
        test: Metrics of the test.
        names: Names of metrics that were logged in validations.
        weights_hash: SHA-256 of the weights and buffers before the first step.
        batches_hash: SHA-256 of the first two batches of each epoch.
        epoch_hashes: Hashes at the end of each epoch.
        seconds: Durations, ``None`` if the process died.
        device: Name of the accelerator, or ``"cpu"``; for several devices with their number, as in ``"2 x cpu"``.
        versions: Versions of this package, torch and Lightning.
        commit: Commit of this package.
        dirty: Whether its files differed from that commit.
        unstable: Objects that the run depends on and that look different in every process.
        missing: Steps and loaders that the module and its data lack; only of a trial.
        lengths: Batches per epoch of each split, ``None`` if unknown; only of a trial.
        learning_rates: Initial rate of each parameter group of each optimizer; only of a trial.
        threads: Number of threads of the process.

    """

    run: Run
    status: Status = "finished"
    error: str | None = None
    is_explained: bool = False
    rank: int = 0
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
    learning_rates: list[float] = field(default_factory=list)
    threads: int | None = None

    @classmethod
    def of_this_process(cls, run: Run, **values: Any) -> "RunResult":
        """Return a result with the versions and the commit of this process."""
        provenance = find_provenance()
        return cls(run, versions=find_versions(), commit=provenance.commit, dirty=provenance.dirty, **values)

    @classmethod
    def from_json(cls, run: Run, content: Any) -> "RunResult | None":
        """Return a run's result from the output of :meth:`to_json`, ``None`` if that is damaged."""
        if not isinstance(content, dict) or content.get("schema") != SCHEMA or not {*content} >= _REQUIRED:
            return None
        names = {attribute.name for attribute in fields(cls)} - {"run"}
        values = {name: value for name, value in content.items() if name in names and value is not None}
        try:
            values["curve"] = [Validation(**row) for row in content["curve"]]
            values["epoch_hashes"] = [EpochHashes(**hashes) for hashes in values.get("epoch_hashes", [])]
            if "seconds" in values:
                values["seconds"] = Seconds(**values["seconds"])
            metrics = [content["test"], *(row.metrics for row in values["curve"])]
            numbers = [number for group in metrics for number in group.values()]
            numbers += [values.get("steps"), values.get("epochs"), *values.get("train_loss", [])]
        except (AttributeError, TypeError):
            return None
        texts = [values.get(name, "") for name in ("weights_hash", "batches_hash", "error")]
        is_sound = all(isinstance(number, (int, float, type(None))) for number in numbers)
        is_sound &= all(isinstance(text, str) for text in texts) and content["status"] in get_args(Status)
        return cls(run, **values) if is_sound and isinstance(content["versions"], dict) else None

    def to_json(self) -> dict[str, Any]:
        """Return the result for JSON, with its method, setting and seed."""
        run = {
            "schema": SCHEMA,
            "name": str(self.run),
            "method": self.run.method.label,
            "identity": self.run.method.identity,
            "setting": dict(self.run.setting.values),
            "seed": self.run.seed,
            "varied": self.run.varied,
        }
        names = [attribute.name for attribute in fields(self) if attribute.name != "run"]
        values = {name: getattr(self, name) for name in names}
        values["curve"] = [asdict(row) for row in self.curve]
        values["epoch_hashes"] = [asdict(hashes) for hashes in self.epoch_hashes]
        values["seconds"] = None if self.seconds is None else asdict(self.seconds)
        content: dict[str, Any] = as_json(run | values)
        return content

    @property
    def provenance(self) -> Provenance:
        """The code of this package that made the result."""
        return Provenance(self.versions.get("lightning-znorm"), self.commit, self.dirty)

    def get_validation(self, metric: str) -> float:
        """Return a validation metric as last logged, NaN for none or one that is not finite."""
        logged = self.find_validations(metric)
        return _as_finite(logged[-1].metrics[metric]) if logged else math.nan

    def get_test(self, metric: str) -> float:
        """Return a test metric, NaN for none or one that is not finite."""
        return _as_finite(self.test.get(metric))

    def find_validations(self, metric: str) -> list[Validation]:
        """Return the validations in which a metric was logged."""
        return [row for row in self.curve if metric in row.metrics]


def _as_finite(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) else math.nan


def identify_package() -> tuple[dict[str, str], str | None]:
    """Return the versions and the commit that must be the same for unfinished work to be used again."""
    return find_versions(), find_provenance().commit


def find_versions() -> dict[str, str]:
    """Return the versions of this package, torch and Lightning."""
    versions = {"lightning-znorm": __version__}  # of the imported code, which may not be the installed one
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions
