"""A trial of a few batches per method, so that errors show before hours are spent."""

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_znorm._lightning import rank_zero_warn
from lightning_znorm.compare.executors.base import Executor
from lightning_znorm.compare.executors.deadline import Deadline
from lightning_znorm.compare.files import read_json, read_log, write_json
from lightning_znorm.compare.question.draft import Draft
from lightning_znorm.compare.question.question import Question
from lightning_znorm.compare.question.run import Run, fingerprint
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
    draft: Draft, recipe: Recipe, executor: Executor, store: Store | None, deadline: Deadline | None = None
) -> tuple[Question, list[RunResult]]:
    """Try each method on a few batches of training, validation and test, and find the learning rate's key.

    Args:
        draft: What is compared.
        recipe: How runs are made.
        executor: Performs the trials.
        store: Folder that keeps the results of trials, ``None`` to leave no files behind.
        deadline: When to stop.

    Returns:
        The question, and the result of each method.

    Raises:
        ValueError: If a trial fails, a step or a loader is missing, the test metric is not logged, or a learning rate
            is to be searched and no key, or several, set it.
        TimeUpError: If the deadline comes first.

    """
    runs, probes = draft.list_first_runs(), draft.list_probes()
    results = _try_runs([*runs, *probes.values()], recipe, executor, store, deadline)
    trials = [results[str(run)] for run in runs]
    for result in trials:
        _check_metrics(result, draft.metrics["monitor"], draft.metrics["test_monitor"])
    rates = {result.run.method.label: result.learning_rates for result in trials}
    changing = [key for key, run in probes.items() if results[str(run)].learning_rates != rates[run.method.label]]
    return _settle(draft, list(probes), changing).question, trials


def _try_runs(
    runs: Sequence[Run], recipe: Recipe, executor: Executor, store: Store | None, deadline: Deadline | None
) -> dict[str, RunResult]:
    """Return the result of each run's trial by its name, known ones from the folder."""
    path = store.trial_file if store else None
    content = read_json(path) if path and path.exists() else None
    content = content if isinstance(content, dict) else {}
    package = identify_package()
    keys = {str(run): fingerprint([run.method.identity, run.values, package]) for run in runs}
    known = {str(run): RunResult.from_json(run, content.get(keys[str(run)])) for run in runs}
    results = {name: result for name, result in known.items() if result is not None}
    untried = [run for run in runs if str(run) not in results]
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
                    results[str(event.task.run)] = event.result
    if path is not None and untried:
        write_json(path, content | {keys[name]: result.to_json() for name, result in results.items()})
    return results


def _settle(draft: Draft, keys: Sequence[str], changing: Sequence[str]) -> Draft:
    """Return the draft with the one key that changes the learning rate."""
    if len(changing) == 1 or not keys:
        return draft if draft.is_settled else draft.settle(*changing)
    if not changing and draft.is_optional:
        rank_zero_warn(
            f"Changing {join_names(keys)} does not change the optimizer's learning rate, so that it is not swept. If"
            " another key sets it, name that in `sweep`."
        )
        return replace(draft, sweep={}) if draft.is_settled else draft.settle(None)
    problem = (
        f"several keys change the optimizers' learning rates: {join_names(changing)}. Name one, as in"
        f" `{changing[0]}=auto`, or sweep nothing"
        if changing
        else f"changing {join_names(keys)} does not change the optimizer's learning rate. Name the key that sets it"
    )
    raise ComparisonError(f"Argument `sweep`: {problem}.")


def estimate_seconds(results: Sequence[RunResult], trainer: Mapping[str, Any]) -> float | None:
    """Estimate how many seconds a run takes, ``None`` if an epoch has no known length."""
    seconds = [_estimate_run(result, trainer) for result in results]
    known = [value for value in seconds if value is not None]
    return sum(known) / len(known) if known and len(known) == len(seconds) else None


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
    log = "" if result.is_explained else read_log(task.folder, lines=30, rank=result.rank)
    details = f"\nThe end of its log:\n{log}" if log else ""
    raise ComparisonError(f"The trial of method `{result.run.method.label}` failed: {result.error}{details}")


def _check_metrics(result: RunResult, monitor: str, test_monitor: str) -> None:
    for hook in result.missing:
        problem, reason = _MISSING[hook]
        raise ComparisonError(f"This cannot be compared: {problem}. {reason}: add `{hook}`.")
    if result.lengths.get("validate") == 0:
        raise ComparisonError(f"This cannot be compared: the `val_dataloader` has no batch. {_SELECTION}.")
    names, test_names = result.names, [*result.test]
    if not names:
        raise ComparisonError(
            f"Argument `monitor` is {monitor!r}, but the module logs nothing at the end of its validation. Log"
            " a metric in `validation_step`, as in `self.log('val_loss', loss)` (without `on_epoch=False`), or return a"
            " scalar and use `--compare.monitor validation_step`."
        )
    if monitor not in names:
        message = explain_missing_monitor(monitor, names)
        if test_monitor not in test_names:  # a wrong name, rather than a metric that is logged later
            raise ComparisonError(message)
        rank_zero_warn(
            f"{message} The comparison goes on, as it may be logged later; it stops if the first run ends without it."
        )
    if test_monitor not in test_names:
        raise ComparisonError(
            f"Argument `test_monitor` is {test_monitor!r}, but the module does not log that in its test."
            f"{did_you_mean(test_monitor, test_names)} It logs {join_names(test_names)}."
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
