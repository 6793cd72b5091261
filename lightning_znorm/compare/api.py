"""A comparison from Python."""

import inspect
import tempfile
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from lightning_znorm._lightning import import_lightning
from lightning_znorm.compare.comparison import Comparison
from lightning_znorm.compare.executors.processes import ProcessExecutor
from lightning_znorm.compare.executors.slots import make_slots
from lightning_znorm.compare.main_guard import check_main_guard
from lightning_znorm.compare.question.question import Mode, parse_question
from lightning_znorm.compare.report.tables import label_settings
from lightning_znorm.compare.runs.recipes import FactoryRecipe, check_trainer
from lightning_znorm.compare.runs.store import Store
from lightning_znorm.errors import ArgumentValueError, ComparisonError, did_you_mean, join_names

_METHODS = "none,clip,gc,znorm"


def compare(
    model_factory: Callable[..., Any],
    datamodule: Any = None,
    methods: str | Sequence[str] | Mapping[str, Any] = _METHODS,
    *,
    sweep: Mapping[str, Sequence[Any]] | None = None,
    seeds: int | Sequence[int] = 3,
    monitor: str = "val_loss",
    mode: Mode | None = None,
    test_monitor: str | None = None,
    baseline: str | None = None,
    trainer: Mapping[str, Any] | None = None,
    jobs: int | None = None,
    out: str | PathLike[str] | None = None,
    retry: bool = False,
) -> pd.DataFrame:
    """Train a module with several gradient transforms, each at its own best setting, and test whether they differ.

    This is ``lightning-znorm compare`` for modules that are made in Python. Each run is a separate process, to which
    functions and data are sent by cloudpickle: they may be defined anywhere, also in a notebook. In a script, call it
    under ``if __name__ == "__main__":``.

    Args:
        model_factory: Returns a new LightningModule; called with the swept values by name.
        datamodule: A LightningDataModule that is not set up yet, a function that makes one, or ``None`` if the module
            has its own loaders.
        methods: As on the command line, ``"none,clip,gc,znorm(min_ndim=2)"``; or a mapping of labels to callbacks,
            lists of callbacks, such text, or ``None``.
        sweep: Values of each argument of ``model_factory``; all combinations are run.
        seeds: Number of seeds, or a list of them.
        monitor: Validation metric that selects each method's setting.
        mode: Whether low (``"min"``) or high (``"max"``) values of the monitor are better; inferred from its name by
            default.
        test_monitor: Test metric that is reported; by default the monitor's name with ``test`` for ``val``.
        baseline: Method that the others are compared with; by default ``"none"``, or else the first.
        trainer: Arguments of the Trainer, such as ``max_epochs``.
        jobs: Number of runs side by side; by default one per visible GPU, or one per two CPU cores.
        out: Folder for results and report; the same call resumes an interrupted comparison. ``None`` keeps nothing.
        retry: Whether to repeat runs that crashed.

    Returns:
        A row per method: ``setting``, ``seeds``, ``test``, ``test_low``, ``test_high``, ``difference``,
        ``difference_low``, ``difference_high``, ``paired``, ``p``, ``p_holm``, ``seeds_needed``, ``validation``,
        ``epochs_to_baseline``, ``steps_to_baseline``, ``reached``, ``steps``, ``seconds_per_step``, ``seconds``,
        ``failed``, ``seeds_failed`` (of the selected setting). Intervals are at 95%; differences are to the baseline,
        paired by seed. ``frame.attrs`` has ``"verdicts"`` and ``"caveats"``, lists of sentences, and ``"provenance"``,
        a list of the versions of this package that made the runs: ``version``, ``commit`` of its git checkout, and
        whether that was ``dirty`` (``None`` if unknown).

    Raises:
        ValueError: If an argument is wrong, a metric is not logged, or ``out`` belongs to something else.
        KeyboardInterrupt: On Ctrl-C; finished runs are kept in ``out``, with a report.
        ComparisonError: If results disappear from ``out``.

    Example::

        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_znorm.compare import compare
        >>> frame = compare(
        ...     BoringModel, methods="none,znorm", seeds=2, trainer={"max_steps": 2, "accelerator": "cpu"},
        ...     monitor="validation_step.x", mode="min", test_monitor="test_step.y",
        ... )
        >>> list(frame.index), frame["seeds"].tolist()
        (['none', 'znorm'], [2, 2])
        >>> frame.attrs["verdicts"][0]
        '`znorm` against `none`: two seeds are too few to tell ...'

    """
    check_main_guard()
    question = parse_question(methods, sweep, seeds, monitor, mode, test_monitor, baseline)
    arguments = dict(trainer or {})
    parameters = list(inspect.signature(import_lightning("trainer").Trainer).parameters)
    for name in arguments:
        if name not in parameters:
            raise ArgumentValueError(
                f"Argument `trainer`: The Trainer has no argument `{name}`.{did_you_mean(name, parameters)}"
            )
    check_trainer(arguments)
    _check_factory(model_factory, question.sweep)
    recipe = FactoryRecipe(model_factory, datamodule, arguments)
    executor = ProcessExecutor(
        make_slots(jobs, str(arguments.get("accelerator", "auto"))),
        preload=_find_module_names(model_factory, datamodule),
    )
    with tempfile.TemporaryDirectory(prefix="lightning-znorm-") as temporary:
        store = Store(Path(temporary if out is None else out))
        outcome = Comparison(question, recipe, store, executor, recipe.describe(), retry).run()
    if outcome.is_interrupted:
        raise KeyboardInterrupt
    findings = outcome.findings
    if findings is None or outcome.missing_reason is not None:
        raise ComparisonError(outcome.missing_reason or "There are no results.")
    frame = label_settings(question, findings.summary)
    frame.attrs |= {"verdicts": findings.verdicts, "caveats": findings.caveats}
    frame.attrs["provenance"] = [provenance._asdict() for provenance in findings.provenances]
    return frame


def _check_factory(model_factory: Any, sweep: Mapping[str, Any]) -> None:
    if not callable(model_factory) or isinstance(model_factory, nn.Module):
        raise ArgumentValueError(
            f"Expected argument `model_factory` to be a function that returns a new module, but got {model_factory!r}."
            " Every run needs a new module: pass `lambda: MyModule(…)`, or the class."
        )
    try:
        inspect.signature(model_factory).bind(**sweep)
    except TypeError as error:
        keys = join_names(list(sweep))
        raise ArgumentValueError(
            f"Argument `model_factory` cannot be called with the keys of `sweep` ({keys}): {error}."
        ) from None


def _find_module_names(*values: Any) -> list[str]:
    return [module for value in values if isinstance(module := getattr(value, "__module__", None), str)]
