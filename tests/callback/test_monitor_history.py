"""What a GradientMonitor keeps of a long training."""

from itertools import pairwise

import pytest
import torch

from lightning_znorm import GradientMonitor
from lightning_znorm.monitor.records import GradientRecord, ThinnedRecords
from tests.callback.test_manual import gan
from tests.callback.test_monitor import fit
from tests.helpers import PACKAGES, recording_logger


@pytest.mark.parametrize("limit", [2, 3, 4, 7, 8])
def test_kept_records_are_few_and_cover_everything(limit):
    records = ThinnedRecords(limit)
    for step in range(200):
        records.add(GradientRecord(step, 0, (), torch.empty(9, 0)))
        steps = [record.step for record in records]
        assert min(step + 1, limit // 2 + 1) <= len(steps) <= limit
        assert (steps[0], steps[-1]) == (0, step)
        *gaps, last = [after - before for before, after in pairwise(steps)] or [1]
        assert len({*gaps}) <= 1
        assert last <= max(gaps, default=last)
        assert step < limit or gaps == [] or gaps[0] * limit >= step


@pytest.mark.parametrize("package", PACKAGES)
def test_the_history_of_a_long_training(package):
    logger = recording_logger(package, prefix="grad/norm")
    monitor = GradientMonitor(every_n_steps=1, max_records=4)
    fit(monitor, package=package, max_epochs=2, max_steps=-1, logger=logger)
    assert [row["step"] for row in monitor.history] == [step for step in (0, 8, 16, 19) for _ in range(4)]
    assert [step for step, _ in logger.rows] == list(range(20))
    assert monitor.plot().axes[0].get_xlim()[1] > 19


def test_each_optimizer_has_its_own():
    monitor = GradientMonitor(every_n_steps=1, max_records=4)
    fit(monitor, module=gan("lightning.pytorch", False), max_epochs=1, max_steps=-1)
    seen = list(dict.fromkeys((row["step"], row["optimizer"]) for row in monitor.history))
    assert seen == [(step, optimizer) for step in (0, 4, 8, 9) for optimizer in (0, 1)]


def test_names_are_kept_once():
    monitor = GradientMonitor(every_n_steps=1)
    fit(monitor, max_steps=6)
    assert len({id(record.parameters) for record in monitor._sort_records()}) == 1


def test_a_next_training_begins_with_an_empty_history():
    monitor = GradientMonitor(every_n_steps=1, max_records=2)
    fit(monitor, max_steps=5)
    fit(monitor, max_steps=2)
    assert {row["step"] for row in monitor.history} == {0, 1}
