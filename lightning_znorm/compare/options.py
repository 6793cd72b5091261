"""What a comparison is asked."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lightning_znorm.compare.methods import Method
from lightning_znorm.compare.plan import Run, Setting, make_runs, make_settings
from lightning_znorm.compare.text import listing

Mode = Literal["min", "max"]

_LOWER_IS_BETTER = ("loss", "err", "mse", "mae", "perplexity", "nll", "ece", "brier")
_HIGHER_IS_BETTER = ("acc", "f1", "dice", "iou", "jaccard", "auc", "auroc", "precision", "recall", "sens", "spec", "r2")
_HIGHER_IS_BETTER += ("score", "bleu", "rouge", "psnr", "ssim", "map", "top1", "top5", "kappa", "mcc")


@dataclass(frozen=True)
class Question:
    """What is compared, and by which figure it is judged.

    Args:
        methods: The ways to treat the gradient.
        sweep: Values of each swept key; every method is run with each combination.
        seeds: Seeds that all methods share.
        monitor: Validation metric that selects each method's setting.
        mode: Whether a small or a large value of it is good; ``None`` to tell from its name.
        test_monitor: Test metric that is reported; ``None`` for the name of the monitor with ``test`` for ``val``.
        baseline: Label of the method from which the differences are taken; ``None`` for ``none``, or the first one.

    Raises:
        ValueError: If an argument is wrong.

    """

    methods: Sequence[Method]
    sweep: dict[str, list[Any]]
    seeds: Sequence[int]
    monitor: str
    mode: Mode | None = None
    test_monitor: str | None = None
    baseline: str | None = None
    labels: list[str] = field(init=False)

    def __post_init__(self) -> None:
        settle = object.__setattr__
        settle(self, "labels", [method.label for method in self.methods])
        if self.mode not in (None, "min", "max"):
            raise ValueError(f"Expected argument `mode` to be 'min' or 'max', but got {self.mode!r}.")
        settle(self, "mode", self.mode or guess_mode(self.monitor))
        settle(self, "test_monitor", self.test_monitor or guess_test_monitor(self.monitor))
        baseline = self.baseline or ("none" if "none" in self.labels else self.labels[0])
        if baseline not in self.labels:
            raise ValueError(
                f"Expected argument `baseline` to be one of the methods ({listing(self.labels)}), but got {baseline!r}."
            )
        settle(self, "baseline", baseline)

    @property
    def settings(self) -> list[Setting]:
        """All combinations of the swept values."""
        return make_settings(self.sweep)

    @property
    def runs(self) -> list[Run]:
        """All runs, in their order."""
        return make_runs(self.methods, self.settings, self.seeds)


def guess_mode(monitor: str) -> Mode:
    """Tell from a metric's name whether small or large values are good.

    Raises:
        ValueError: If the name does not tell.

    Example::

        >>> guess_mode("val_loss"), guess_mode("valid/acc")
        ('min', 'max')

    """
    name = monitor.lower()
    low, high = (any(part in name for part in parts) for parts in (_LOWER_IS_BETTER, _HIGHER_IS_BETTER))
    if low == high:
        raise ValueError(
            f"Argument `mode` is needed: the name {monitor!r} of the monitor does not tell whether small values are good"
            " (`--compare.mode min`) or large ones (`--compare.mode max`)."
        )
    return "min" if low else "max"


def guess_test_monitor(monitor: str) -> str:
    """Return the name under which a test logs what a validation logs.

    Raises:
        ValueError: If the name does not begin as those of validation metrics do.

    Example::

        >>> guess_test_monitor("val_acc"), guess_test_monitor("valid/dice")
        ('test_acc', 'test/dice')

    """
    for prefix in ("validation", "valid", "val", "Validation", "Valid", "Val"):
        if monitor.startswith(prefix):
            test = "Test" if prefix[0] == "V" else "test"
            return test + monitor.removeprefix(prefix)
    raise ValueError(
        f"Argument `test_monitor` is needed: the name of the test metric cannot be told from the monitor {monitor!r}, as"
        " it does not begin with `val`. Name it, such as `--compare.test_monitor test_acc`."
    )
