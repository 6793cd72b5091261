"""A trial of a few batches per method, so that errors show before hours are spent."""

import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_znorm._lightning import rank_zero_warn
from lightning_znorm.compare.executors.base import Executor
from lightning_znorm.compare.executors.deadline import Deadline
from lightning_znorm.compare.files import read_json, read_log, write_json
from lightning_znorm.compare.question.plan import Run, fingerprint
from lightning_znorm.compare.question.question import Question
from lightning_znorm.compare.runs.perform import Task, find_identities
from lightning_znorm.compare.runs.recipes import Recipe
from lightning_znorm.compare.runs.result import RunResult, Seconds, identify_package
from lightning_znorm.compare.runs.store import Store
from lightning_znorm.errors import ComparisonError, did_you_mean, join_names

_SELECTION = "Settings are selected by their metric on the validation split"
_REPORT = f"{_SELECTION}, so results must be reported on a separate test split"
_MISSING = {
    "validation_step": ("the module has no `validation_step`", _SELECTION),
    "val_dataloader": ("there is no `val_dataloader`, neither in the module nor in a datamodule", _SELECTION),
    "test_step": ("the module has no `test_step`", _REPORT),
    "test_dataloader": ("there is no `test_dataloader`, neither in the module nor in a datamodule", _REPORT),
}


def try_methods(
    question: Question, recipe: Recipe, executor: Executor, store: Store | None, deadline: Deadline | None = None
) -> list[RunResult]:
    """Try each method on a few batches of training, validation and test.

    Args:
        question: What is compared.
        recipe: How runs are made.
        executor: Performs the trials.
        store: Folder that keeps the results of trials, ``None`` to leave no files behind.
        deadline: When to stop.

    Returns:
        The result of each method.

    Raises:
        ValueError: If a trial fails, a step or a loader is missing, or the test metric is not logged.
        TimeUpError: If the deadline comes first.

    """
    runs = [Run(method, question.settings[0], question.seeds[0]) for method in question.methods]
    path = store.trial_file if store else None
    content = read_json(path) if path and path.exists() else None
    content = content if isinstance(content, dict) else {}
    package = identify_package()
    keys = {run.method.label: fingerprint([run.method.identity, package]) for run in runs}
    trials = {run.method.label: RunResult.from_json(run, content.get(keys[run.method.label])) for run in runs}
    untried = [run for run in runs if trials[run.method.label] is None]
    with tempfile.TemporaryDirectory(prefix="lightning-znorm-") as folder:
        description = recipe.describe()
        tasks = [
            Task(run, recipe, Path(folder) / run.key, is_trial=True, identities=find_identities(run) | description)
            for run in untried
        ]
        # the first one alone, as it may download data for the others
        for batch in filter(None, (tasks[:1], tasks[1:])):
            for event in executor.execute(batch, deadline):
                if event.result is not None:
                    _check_status(event.result, event.task)
                    trials[event.task.run.method.label] = event.result
    results = [result for result in trials.values() if result is not None]
    for result in results:
        _check_metrics(result, question)
    if path is not None and untried:
        write_json(path, content | {keys[result.run.method.label]: result.to_json() for result in results})
    return results


def estimate_seconds(results: Sequence[RunResult], question: Question, trainer: Mapping[str, Any]) -> float | None:
    """Estimate how many seconds all runs take one after another, ``None`` if an epoch has no known length."""
    per_run = [_estimate_run(result, trainer) for result in results]
    if None in per_run:
        return None
    return sum(seconds or 0.0 for seconds in per_run) * len(question.settings) * len(question.seeds)


def _estimate_run(result: RunResult, trainer: Mapping[str, Any]) -> float | None:
    seconds = result.seconds or Seconds()
    train = _limit(result.lengths.get("train"), trainer.get("limit_train_batches"))
    validate = _limit(result.lengths.get("validate"), trainer.get("limit_val_batches"))
    step = seconds.step if seconds.step is not None else seconds.fit
    epochs, steps = trainer.get("max_epochs"), trainer.get("max_steps", -1)
    if steps is not None and steps > 0:
        batches = steps * (trainer.get("accumulate_grad_batches") or 1)
        if train and epochs and epochs > 0:
            batches = min(batches, epochs * train)
    elif train is None or epochs == -1:
        return None
    else:
        batches = (epochs or 1000) * train
    validations = batches / train * _count_validations(train, trainer) if train else 0.0
    evaluation = (validate or 0.0) * seconds.batch.get("validate", 0.0)
    return float(seconds.make + batches * step + (validations + 1) * evaluation)


def _count_validations(train: float, trainer: Mapping[str, Any]) -> float:
    """Return the number of validations per epoch."""
    interval = trainer.get("val_check_interval") or 1.0
    if not isinstance(interval, (int, float)):
        return 1.0  # an interval of time
    per_epoch = 1 / interval if isinstance(interval, float) else train / interval
    return per_epoch / (trainer.get("check_val_every_n_epoch") or 1)


def _limit(length: float | None, limit: float | None) -> float | None:
    if limit is None or length is None:
        return length
    return math.floor(length * limit) if isinstance(limit, float) else min(length, limit)


def _check_status(result: RunResult, task: Task) -> None:
    if result.status != "crashed":
        return
    log = "" if result.is_explained else read_log(task.folder, lines=30)
    details = f"\nThe end of its log:\n{log}" if log else ""
    raise ComparisonError(f"The trial of method `{result.run.method.label}` failed: {result.error}{details}")


def _check_metrics(result: RunResult, question: Question) -> None:
    for hook in result.missing:
        problem, reason = _MISSING[hook]
        raise ComparisonError(f"This cannot be compared: {problem}. {reason}: add `{hook}`.")
    if result.lengths.get("validate") == 0:
        raise ComparisonError(f"This cannot be compared: the `val_dataloader` has no batch. {_SELECTION}.")
    names, test_names = result.names, [*result.test]
    if not names:
        raise ComparisonError(
            f"Argument `monitor` is {question.monitor!r}, but the module logs nothing at the end of its validation. Log"
            " a metric in `validation_step`, as in `self.log('val_loss', loss)` (without `on_epoch=False`), or return a"
            " scalar and use `--compare.monitor validation_step`."
        )
    if question.monitor not in names:
        message = explain_missing_monitor(question.monitor, names)
        if question.test_monitor not in test_names:  # a wrong name, rather than a metric that is logged later
            raise ComparisonError(message)
        rank_zero_warn(
            f"{message} The comparison goes on, as it may be logged later; it stops if the first run ends without it."
        )
    if question.test_monitor not in test_names:
        raise ComparisonError(
            f"Argument `test_monitor` is {question.test_monitor!r}, but the module does not log that in its test."
            f"{did_you_mean(question.test_monitor, test_names)} It logs {join_names(test_names)}."
        )
    if result.status == "diverged":
        rank_zero_warn(
            f"The weights of method `{result.run.method.label}` are not finite after a few steps: {result.error}"
        )


def explain_missing_monitor(monitor: str, names: Sequence[str]) -> str:
    """Return the error for a monitor that is not logged, with the names of logged metrics."""
    return (
        f"Argument `monitor` is {monitor!r}, but the module does not log that in its validation."
        f"{did_you_mean(monitor, names)} It logs {join_names(names)}."
    )
