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
from lightning_znorm.compare.executors.choice import make_executor
from lightning_znorm.compare.main_guard import check_main_guard
from lightning_znorm.compare.question.arguments import parse_question
from lightning_znorm.compare.question.directions import Mode
from lightning_znorm.compare.question.run import Run
from lightning_znorm.compare.question.sweep import AUTO
from lightning_znorm.compare.report.verdicts import answer
from lightning_znorm.compare.runs.recipes import FactoryRecipe, check_trainer, has_parameter, select_known
from lightning_znorm.compare.runs.store import Store
from lightning_znorm.errors import ArgumentValueError, ComparisonError, did_you_mean, join_names

_METHODS = "none,clip,gc,znorm"


def compare(
    model_factory: Callable[..., Any],
    datamodule: Any = None,
    methods: str | Sequence[str] | Mapping[str, Any] = _METHODS,
    *,
    sweep: str | Mapping[str, Any] | None = AUTO,
    confirm: int | Sequence[int] | None = None,
    trials: int = 9,
    width: float | None = None,
    margin: float | None = None,
    vary: str | None = None,
    monitor: str = "val_loss",
    mode: Mode | None = None,
    test_monitor: str | None = None,
    baseline: str | None = None,
    trainer: Mapping[str, Any] | None = None,
    jobs: int | None = None,
    threads: int | None = None,
    executor: Any = None,
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
        sweep: Values of each argument of ``model_factory``: a list, ``"1e-5..1e-1"`` for a range that is searched,
            ``"auto"`` for a search from the argument's default, ``"auto(1e-3)"`` from another value, or a mapping of
            methods to one of these; all combinations are run. ``"auto"`` searches the argument ``lr`` or
            ``learning_rate`` if there is one with a default, and ``None`` sweeps nothing.
        confirm: Number of pairs of runs, with seeds that all methods share and the selection has not used, or a list of
            these seeds; 8 by default, or as many as the number of methods needs.
        trials: Number of values that a search tries for each method.
        width: Half the length of the interval of a difference, from which the number of pairs follows instead of
            ``confirm``: at least 12, at most 48.
        margin: The smallest difference that matters, in units of the metric; for the answer "equivalent", and the
            number of pairs that would decide.
        vary: An argument of ``model_factory``, or of the function ``datamodule``, that is set to the seed of each run.
        monitor: Validation metric that selects each method's setting.
        mode: Whether low (``"min"``) or high (``"max"``) values of the monitor are better; inferred from its name by
            default.
        test_monitor: Test metric that is reported; by default the monitor's name with ``test`` for ``val``.
        baseline: Method that the others are compared with; by default ``"none"``, or else the first.
        trainer: Arguments of the Trainer, such as ``max_epochs``; ``devices`` is the number of each run. A logger, or
            several, may be made by a function.
        jobs: Number of runs side by side; by default as many as the visible GPUs are enough for, or one per two CPU
            cores and device, and with an executor all that it takes.
        threads: Number of threads of each process; by default the CPU cores divided by the processes side by side, and
            with an executor 1.
        executor: A ``concurrent.futures.Executor`` that performs the runs, such as :class:`.DaskExecutor`, or
            ``client.get_executor(pure=False, retries=0)`` of a Dask client; by default, processes of this machine.
        out: Folder for results and report; the same call resumes an interrupted comparison, and shares the runs of one
            that is at work on another machine. ``None`` keeps nothing.
        retry: Whether to repeat runs that crashed.

    Returns:
        A row per method, over its runs of the confirmation: ``setting``, ``runs``, ``test``, ``test_low``,
        ``test_high``, ``answer`` (``"better"``, ``"worse"``, ``"equivalent"``, ``"undecided"``), ``pairs``,
        ``difference``, ``difference_low``, ``difference_high``, ``p``, ``p_holm``, ``p_equivalence``, ``probability``
        (of being better in a pair), ``probability_low``, ``probability_high``, ``pairs_needed``, ``validation``,
        ``steps_to_baseline``, ``seconds_to_baseline``, ``reached``, ``steps``, ``seconds_per_step``, ``seconds``,
        ``diverged``, ``crashed``, ``stopped_early``. Intervals are at 95%; differences are to the baseline, paired by
        seed. ``frame.attrs`` has ``"answer"``, a sentence, ``"verdicts"`` and ``"caveats"``, lists of sentences, and
        ``"provenance"``, a list of the versions of this package that made the runs: ``version``, ``commit`` of its git
        checkout, and whether that was ``dirty`` (``None`` if unknown).

    Raises:
        ValueError: If an argument is wrong, a metric is not logged, or ``out`` belongs to something else.
        KeyboardInterrupt: On Ctrl-C; finished runs are kept in ``out``, with a report.
        ComparisonError: If results disappear from ``out``.

    Example::

        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_znorm.compare import compare
        >>> frame = compare(
        ...     BoringModel, methods="none,znorm", confirm=6, trainer={"max_steps": 2, "accelerator": "cpu"},
        ...     monitor="validation_step.x", mode="min", test_monitor="test_step.y",
        ... )
        >>> list(frame.index), frame["runs"].tolist()
        (['none', 'znorm'], [6, 6])
        >>> frame.attrs["verdicts"][0]
        '`znorm` ...'

    """
    check_main_guard()
    defaults = _list_defaults(model_factory)
    draft = parse_question(
        *(methods, sweep, monitor, mode, test_monitor, baseline, confirm, trials, width, margin, vary), defaults
    )
    arguments = dict(trainer or {})
    parameters = list(inspect.signature(import_lightning("trainer").Trainer).parameters)
    for name in arguments:
        if name not in parameters:
            raise ArgumentValueError(
                f"Argument `trainer`: The Trainer has no argument `{name}`.{did_you_mean(name, parameters)}"
            )
    check_trainer(arguments)
    _check_factory(model_factory, draft.list_first_runs()[0])
    if vary is not None and not (has_parameter(model_factory, vary) or has_parameter(datamodule, vary)):
        raise ArgumentValueError(
            f"Argument `vary` is {vary!r}, but neither `model_factory` nor a function `datamodule` has an argument of"
            " that name."
        )
    recipe = FactoryRecipe(model_factory, datamodule, arguments)
    modules = _find_module_names(model_factory, datamodule)
    runs_by = make_executor(executor, jobs, threads, arguments, modules)
    with tempfile.TemporaryDirectory(prefix="lightning-znorm-") as temporary:
        store = Store(Path(temporary if out is None else out))
        about = {"model": _name(model_factory), "data": _name(datamodule)}
        outcome = Comparison(draft, recipe, store, runs_by, recipe.describe(), retry, threads, about=about).run()
    if outcome.is_interrupted:
        raise KeyboardInterrupt
    findings = outcome.findings
    if findings is None or outcome.question is None or outcome.missing_reason is not None:
        raise ComparisonError(outcome.missing_reason or "There are no results.")
    frame = findings.summary.copy()
    frame.attrs["answer"] = answer(outcome.question, findings.verdicts)
    frame.attrs["verdicts"] = [verdict.sentence for verdict in findings.verdicts]
    frame.attrs["caveats"] = findings.caveats
    frame.attrs["provenance"] = [provenance._asdict() for provenance in findings.provenances]
    return frame


def _list_defaults(model_factory: Any) -> dict[str, Any]:
    """Return the default of each argument of a factory."""
    try:
        parameters = inspect.signature(model_factory).parameters.values()
    except (TypeError, ValueError):
        return {}
    return {parameter.name: parameter.default for parameter in parameters}


def _check_factory(model_factory: Any, run: Run) -> None:
    if not callable(model_factory) or isinstance(model_factory, nn.Module):
        raise ArgumentValueError(
            f"Expected argument `model_factory` to be a function that returns a new module, but got {model_factory!r}."
            " Every run needs a new module: pass `lambda: MyModule(…)`, or the class."
        )
    try:
        inspect.signature(model_factory).bind(**select_known(model_factory, run))
    except TypeError as error:
        keys = join_names(list(run.setting.values))
        raise ArgumentValueError(
            f"Argument `model_factory` cannot be called with the keys of `sweep` ({keys}): {error}."
        ) from None


def _name(value: Any) -> str:
    """Return the name of a class or function, or of the class of another object."""
    return "" if value is None else str(getattr(value, "__qualname__", type(value).__qualname__))


def _find_module_names(*values: Any) -> list[str]:
    return [module for value in values if isinstance(module := getattr(value, "__module__", None), str)]
