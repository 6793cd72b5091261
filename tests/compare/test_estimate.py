"""The estimate of the time, from what a trial has measured."""

import pytest

from lightning_znorm.compare.question.methods import Method
from lightning_znorm.compare.question.run import Run, Setting
from lightning_znorm.compare.runs.result import RunResult, Seconds
from lightning_znorm.compare.trial import estimate_seconds
from tests.compare.helpers import ALONE, compare, read_results


def trial(train=100.0, validate=10.0, step=0.5):
    seconds = Seconds(make=3.0, fit=2.0, step=step, batch={"validate": 0.1})
    run = Run(Method("none"), Setting(), 0)
    return RunResult(run, lengths={"train": train, "validate": validate}, seconds=seconds)


@pytest.mark.parametrize(
    ("trainer", "steps", "validations"),
    [
        ({"max_epochs": 4}, 400, 4),
        ({"max_epochs": 4, "max_steps": -1, "check_val_every_n_epoch": 2}, 400, 2),
        ({"max_epochs": 4, "limit_train_batches": 0.25}, 100, 4),
        ({"max_epochs": 4, "limit_train_batches": 7}, 28, 4),
        ({"max_epochs": 4, "val_check_interval": 0.25}, 400, 16),
        ({"max_epochs": 4, "val_check_interval": 20}, 400, 20),
        ({"max_epochs": 4, "val_check_interval": "00:00:10:00"}, 400, 4),
        ({"max_steps": 50}, 50, 0.5),
        ({"max_steps": 50, "accumulate_grad_batches": 4}, 200, 2),
        ({"max_steps": 500, "max_epochs": 2}, 200, 2),
        ({}, 100_000, 1000),
    ],
)
def test_a_run(trainer, steps, validations):
    assert estimate_seconds([trial()], trainer) == pytest.approx(3.0 + 0.5 * steps + (validations + 1) * 10 * 0.1)


def test_a_run_of_any_method():
    one, other = trial(step=0.5), trial(step=1.0)
    each = [estimate_seconds([result], {"max_epochs": 1}) for result in (one, other)]
    assert each[0] < each[1]
    assert estimate_seconds([one, other], {"max_epochs": 1}) == pytest.approx(sum(each) / 2)


@pytest.mark.parametrize("trainer", [{"max_epochs": -1}, {"max_epochs": 2, "train": None}])
def test_what_cannot_be_told(trainer):
    result = trial(train=trainer.pop("train", 100.0))
    assert estimate_seconds([result], trainer) is None
    assert estimate_seconds([trial(), result], trainer) is None
    assert estimate_seconds([], trainer) is None


@pytest.mark.slow
def test_a_training_of_one_batch(capsys):
    assert compare(*ALONE, "--trainer.limit_train_batches=1") == 0
    assert "2 side by side, about" in capsys.readouterr().err
    assert len(read_results("out")) == 1
