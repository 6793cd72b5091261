"""`log_stats`: which figures, in which steps, and that they are right."""

import csv
from importlib import import_module

import pytest

from lightning_znorm import ZNorm
from tests.helpers import PACKAGES, make_module, make_trainer, recording_logger

SUMMARY = {"mean_abs", "std_min", "std_median", "std_max", "cosine_mean", "cosine_min"}


def logged(package="lightning.pytorch", every=3, callback=None, callbacks=(), **kwargs):
    logger = recording_logger(package)
    trainer = make_trainer(
        package, logger=logger, log_every_n_steps=every, callbacks=[callback, *callbacks], **{"max_steps": 8, **kwargs}
    )
    trainer.fit(make_module(package))
    return logger.rows


class Raw:
    """The raw gradients, seen by an earlier callback."""

    @staticmethod
    def callback(package="lightning.pytorch"):
        class Look(import_module(package).Callback):
            def __init__(self):
                self.gradients = []

            def on_after_backward(self, trainer, pl_module):
                self.gradients.append({name: p.grad.double().clone() for name, p in pl_module.named_parameters()})

        return Look()


@pytest.mark.parametrize("package", PACKAGES)
def test_layers_logs_mean_and_std_of_the_raw_gradient_by_name(package):
    raw = Raw.callback(package)
    rows = logged(package, callback=ZNorm(log_stats="layers"), callbacks=[raw])
    assert [step for step, _ in rows] == [2, 5]
    for step, metrics in rows:
        assert len(metrics) == 2 * 4
        for name, gradient in raw.gradients[step].items():
            assert metrics[f"znorm/mean/{name}"] == pytest.approx(gradient.mean().item())
            assert metrics[f"znorm/std/{name}"] == pytest.approx(gradient.std(correction=0).item())


def test_summary_logs_a_handful():
    raw = Raw.callback()
    rows = logged(callback=ZNorm(log_stats="summary"), callbacks=[raw])
    assert [step for step, _ in rows] == [2, 5]
    for step, metrics in rows:
        assert set(metrics) == {f"znorm/{name}" for name in SUMMARY}
        means = [gradient.mean().item() for gradient in raw.gradients[step].values()]
        stds = [gradient.std(correction=0).item() for gradient in raw.gradients[step].values()]
        cosines = [std / (mean**2 + std**2) ** 0.5 for mean, std in zip(means, stds, strict=True)]
        assert metrics["znorm/mean_abs"] == pytest.approx(sum(map(abs, means)) / 4)
        assert metrics["znorm/std_min"] == pytest.approx(min(stds))
        assert metrics["znorm/std_max"] == pytest.approx(max(stds))
        assert min(stds) <= metrics["znorm/std_median"] <= max(stds)
        assert metrics["znorm/cosine_mean"] == pytest.approx(sum(cosines) / 4)
        assert metrics["znorm/cosine_min"] == pytest.approx(min(cosines))


def test_logs_nothing_by_default():
    assert logged(callback=ZNorm(), every=1) == []


def test_logs_nothing_outside_of_its_schedule():
    rows = logged(callback=ZNorm(log_stats="summary", start_step=2, stop_step=5), every=1)
    assert [step for step, _ in rows] == [2, 3, 4]


def test_counts_optimizer_steps_under_accumulation():
    rows = logged(callback=ZNorm(log_stats="summary"), every=2, accumulate_grad_batches=2, max_steps=5)
    assert [step for step, _ in rows] == [1, 3]


def test_excluded_parameters_are_not_logged():
    rows = logged(callback=ZNorm(log_stats="layers", exclude=["*.bias"]), every=8)
    assert set(rows[0][1]) == {f"znorm/{kind}/network.{layer}.weight" for kind in ("mean", "std") for layer in (0, 2)}


def test_reaches_a_real_csv_file_in_the_steps_of_the_loss(tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(tmp_path)
    trainer = make_trainer(logger=logger, log_every_n_steps=2, max_steps=4, callbacks=[ZNorm(log_stats="summary")])
    trainer.fit(make_module())
    with open(f"{logger.log_dir}/metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["znorm/std_max"]]
    assert [int(row["step"]) for row in rows] == [1, 3]
    assert all(float(row["znorm/std_max"]) > 0 for row in rows)
    with open(f"{logger.log_dir}/metrics.csv") as file:
        losses = [int(row["step"]) for row in csv.DictReader(file) if row["train_loss"]]
    assert losses == [1, 3]
