"""What a run notes down."""

import hashlib
import math
import random

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from lightning_znorm.compare.runs import recorder as recorders
from lightning_znorm.compare.runs.hashes import hash_random_states
from lightning_znorm.compare.runs.recorder import Recorder
from lightning_znorm.compare.runs.training import compute_progress, find_end
from tests.compare import odd
from tests.compare.tiny import TinyData, TinyModel, Unshared
from tests.helpers import PACKAGES, make_trainer


def record(seed=0, model=TinyModel, data=TinyData, epochs=2, report=None, callbacks_before=(), **arguments):
    torch.manual_seed(seed)
    recorder = Recorder(report)
    callbacks = [*callbacks_before, recorder]
    trainer = make_trainer(max_epochs=epochs, callbacks=callbacks, num_sanity_val_steps=2, **arguments)
    module, datamodule = model(), data()
    trainer.fit(module, datamodule=datamodule)
    return recorder, trainer, module, datamodule


def test_a_row_per_validation():
    recorder, _, module, data = record()
    assert [(row.epoch, row.step) for row in recorder.curve] == [(1.0, 5), (2.0, 10)]
    assert list(recorder.validation_names) == ["val_loss", "val_acc"]
    with torch.no_grad():
        inputs, labels = data.val_dataloader().dataset.tensors
        accuracy = (module.network(inputs).argmax(1) == labels).float().mean().item()
    assert recorder.curve[-1].metrics["val_acc"] == pytest.approx(accuracy)
    assert len(recorder.losses) == 2
    assert recorder.losses[1] < recorder.losses[0]


def test_a_row_has_what_was_logged_in_its_validation():
    """Lightning keeps the metrics of earlier ones."""
    recorder, *_ = record(model=odd.Once, epochs=3)
    assert ["val_first_loss" in row.metrics for row in recorder.curve] == [True, False, False]
    assert all("val_acc" in row.metrics for row in recorder.curve)
    assert "train_loss" not in recorder.validation_names
    rare, *_ = record(model=odd.Rare, epochs=4)
    assert ["val_fid_loss" in row.metrics for row in rare.curve] == [False, True, False, True]
    assert "val_fid_loss" in rare.validation_names


def test_the_epoch_is_unknown_where_the_data_have_no_length():
    recorder, *_ = record(data=odd.Unsized, epochs=-1, max_steps=40, val_check_interval=10)
    assert [(row.epoch, row.step) for row in recorder.curve] == [(None, 10), (None, 20), (None, 30), (None, 40)]
    assert (recorder.steps, recorder.epochs) == (40, None)


def test_several_validations_in_an_epoch():
    recorder, *_ = record(val_check_interval=2)
    assert [row.epoch for row in recorder.curve] == [0.4, 0.8, 1.4, 1.8]


def test_hashes_tell_weights_and_batches_apart():
    first, again, other = (record(seed)[0] for seed in (0, 0, 1))
    assert (first.weights_hash, first.batches_hash) == (again.weights_hash, again.batches_hash)
    assert first.weights_hash != other.weights_hash
    assert first.batches_hash != other.batches_hash
    foreign, _ = record(data=Unshared)[0], None
    assert foreign.weights_hash == first.weights_hash
    assert foreign.batches_hash != first.batches_hash
    assert record(epochs=1)[0].batches_hash != first.batches_hash


def test_hashes_of_each_epoch_tell_where_two_trainings_part():
    plain, again, longer = record(), record(), record(epochs=3)
    drawing = record(callbacks_before=[odd.Drawing()])
    first = plain[0].epoch_hashes
    assert len(first) == 2
    assert again[0].epoch_hashes == first
    assert longer[0].epoch_hashes[:2] == first  # as where the other one was stopped early
    # the order of the first epoch was drawn before; that of the second comes after
    assert drawing[0].epoch_hashes[0].batches == first[0].batches
    assert drawing[0].epoch_hashes[0].random != first[0].random
    assert drawing[0].epoch_hashes[1].batches != first[1].batches


@pytest.mark.parametrize("draw", [random.random, np.random.rand, lambda: torch.rand(1)])
def test_the_states_of_all_generators_are_hashed(draw):
    before = hash_random_states(torch.device("cpu"))
    assert hash_random_states(torch.device("cpu")) == before
    draw()
    assert hash_random_states(torch.device("cpu")) != before


def test_batches_of_a_class_of_the_users():
    first, again, other = (record(seed, data=odd.Objects)[0].batches_hash for seed in (0, 0, 1))
    assert first == again != other


def test_lazy_layers_are_hashed_once_they_have_weights():
    first, again, other = (record(seed, model=odd.Lazy)[0].weights_hash for seed in (0, 0, 1))
    assert first == again != other
    assert len(first) == 64


def test_the_time_per_step_is_the_median_of_the_epochs():
    recorder = Recorder()
    assert recorder.seconds_per_step is None
    recorder._epoch_seconds_per_step = [9.0, 1.0]
    assert recorder.seconds_per_step == 5.0


class Ready(EarlyStopping):
    """Stops after the first validation."""

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            trainer.should_stop, self.stopping_reason = True, EarlyStoppingReason.PATIENCE_EXHAUSTED


class Stop(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop = True


@pytest.mark.parametrize(
    ("arguments", "expected", "steps"),
    [
        ({"epochs": 2}, ("max_epochs", False), 10),
        ({"epochs": 9, "max_steps": 7}, ("max_steps", False), 7),
        ({"epochs": 9, "callbacks_before": [Ready("val_loss")]}, ("early stopping (Ready)", True), 5),
        ({"epochs": 1, "callbacks_before": [Ready("val_loss")]}, ("max_epochs", False), 5),
        ({"epochs": 9, "callbacks_before": [EarlyStopping("val_loss", patience=9)]}, ("max_epochs", False), 45),
        ({"epochs": 9, "max_time": {"seconds": 0}}, ("max_time", True), 0),
        ({"epochs": 9, "callbacks_before": [Stop()]}, ("trainer.should_stop", True), 1),
    ],
)
def test_why_a_training_has_ended(arguments, expected, steps):
    recorder, trainer, *_ = record(**arguments)
    assert find_end(trainer) == expected
    assert recorder.steps == steps


def test_the_weights_hash_is_that_of_the_first_weights():
    torch.manual_seed(0)
    digest = hashlib.sha256()
    for name, value in TinyModel().state_dict().items():
        digest.update(name.encode())
        digest.update(f"{value.dtype}{value.layout}{tuple(value.shape)}".encode())
        digest.update(value.numpy().tobytes())
    assert record(0)[0].weights_hash == digest.hexdigest()


def test_tensors_of_any_kind_can_be_hashed():
    class Odd(TinyModel):
        def __init__(self):
            super().__init__()
            self.register_buffer("scale", torch.tensor(2.0, dtype=torch.bfloat16))
            self.register_buffer("empty", torch.zeros(0, 3))
            self.register_buffer("conjugate", torch.tensor([[1 + 2j, 3j]]).conj())
            self.register_buffer("sparse", torch.eye(3).to_sparse())
            self.register_buffer("rows", torch.eye(3).to_sparse_csr())
            self.register_buffer("small", torch.ones(2).to(torch.float8_e4m3fn))

    assert len(record(model=Odd)[0].weights_hash) == 64


def test_a_training_whose_weights_are_lost_stops():
    class Lost(TinyModel):
        def on_before_optimizer_step(self, optimizer):
            self.network[0].weight.grad.fill_(math.inf)

    recorder, trainer, *_ = record(model=Lost, epochs=4, min_epochs=3)
    assert recorder.divergence == "A weight is inf or NaN after epoch 1."
    assert (recorder.steps, recorder.epochs) == (5, 1.0)
    assert recorder.has_validated_last(trainer)  # whose metrics are those of the last weights
    assert record()[0].divergence is None


def test_whether_the_last_step_was_validated():
    recorder, trainer, *_ = record(epochs=3, check_val_every_n_epoch=2)
    assert not recorder.has_validated_last(trainer)
    recorder, trainer, *_ = record(epochs=2, check_val_every_n_epoch=2)
    assert recorder.has_validated_last(trainer)
    recorder, trainer, *_ = record(limit_val_batches=0)
    assert not recorder.has_validated_last(trainer)


def test_the_learning_rates_are_those_before_any_schedule():
    class Groups(TinyModel):
        def configure_optimizers(self):
            first, _, last = self.network
            groups = [{"params": first.parameters(), "lr": 0.3}, {"params": last.parameters(), "lr": 0.2}]
            optimizer = torch.optim.SGD(groups, lr=0.1)
            return [optimizer], [torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1e-3)]

    assert record()[0].learning_rates == [0.1]
    assert record(model=Groups)[0].learning_rates == [0.3, 0.2]
    assert record(model=odd.Untrained)[0].learning_rates == []


def test_the_time_per_step_leaves_out_validations(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(recorders.time, "perf_counter", lambda: now[0])

    class Slow(TinyModel):
        def training_step(self, batch, batch_idx):
            now[0] += 1
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            now[0] += 100
            super().validation_step(batch, batch_idx)

    recorder, *_ = record(model=Slow, val_check_interval=2)
    assert recorder.seconds_per_step == 1


def test_the_time_per_step_of_a_training_that_ends_within_its_first_epoch():
    assert record(epochs=None, max_steps=3)[0].seconds_per_step > 0
    assert record(epochs=None, max_steps=1)[0].seconds_per_step is None


@pytest.mark.parametrize("package", PACKAGES)
def test_what_steps_return_is_a_metric_too(package):
    from importlib import import_module

    boring = import_module(f"{package}.demos.boring_classes").BoringModel
    recorder = Recorder()
    trainer = make_trainer(package, max_steps=2, limit_val_batches=3, limit_test_batches=4, callbacks=[recorder])
    model = boring()
    trainer.fit(model)
    trainer.validate(model, verbose=False)
    assert list(recorder.curve[-1].metrics) == ["validation_step.x"]
    losses = [model.step(batch).item() for batch, _ in zip(model.val_dataloader(), range(3), strict=False)]
    trainer.validate(model, verbose=False)
    assert recorder.curve[-1].metrics["validation_step.x"] > 0
    assert all(value > 0 for value in losses)
    trainer.test(model, verbose=False)
    assert list(recorder.returned) == ["test_step.y"]


def test_progress_is_reported():
    reports = []
    recorder, trainer, *_ = record(report=lambda share, metrics: reports.append((share, metrics)))
    assert reports[0] == (0.1, {})
    trainer.fit_loop.epoch_progress.current.processed = 1
    assert compute_progress(trainer, 5) == pytest.approx(1.0)
    assert recorder.curve
