"""GradientMonitor: figures against NumPy, and of which gradients they are."""

import math
from importlib import import_module

import numpy as np
import pytest
import torch

from lightning_znorm import GradientCentralization, GradientMonitor, ZNorm
from tests.callback.test_manual import gan
from tests.helpers import (
    FIRST_PACKAGE,
    PACKAGES,
    make_module,
    make_trainer,
    precision_arguments,
    recording_logger,
    znorm_by_numpy,
)

FIGURES = ("norm", "mean", "std", "near_zero")
NAMES = [f"network.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")]


def figures_by_numpy(gradient, near_zero=1e-8):
    exact = gradient.detach().double().numpy().astype(np.longdouble)
    values = (np.sqrt(np.square(exact).sum()), exact.mean(), exact.std(), (np.abs(exact) <= near_zero).mean())
    return dict(zip(FIGURES, map(float, values), strict=True))


def cosine_by_numpy(one, other):
    one, other = (tensor.detach().double().numpy().ravel() for tensor in (one, other))
    return float(one @ other / np.sqrt((one @ one) * (other @ other)))


def look(package="lightning.pytorch"):
    """A callback that keeps the raw gradients and those after the optimizer's step."""

    class Look(import_module(package).Callback):
        def __init__(self):
            self.raw, self.received = [], []

        def on_after_backward(self, trainer, pl_module):
            self.raw.append({name: p.grad.clone() for name, p in pl_module.named_parameters()})

        def on_train_batch_end(self, trainer, pl_module, *args):
            self.received.append({name: p.grad.clone() for name, p in pl_module.named_parameters()})

    return Look()


def fit(*callbacks, package="lightning.pytorch", module=None, **trainer):
    arguments = {"max_steps": 3, **trainer}
    trainer = make_trainer(package, callbacks=list(callbacks), **arguments)
    trainer.fit(module or make_module(package))
    return trainer


@pytest.mark.parametrize("package", PACKAGES)
def test_raw_and_received_with_znorm_and_clipping(package):
    monitor, seen = GradientMonitor(every_n_steps=1, near_zero=0.01), look(package)
    # raw gradients also where the monitor comes last in the list
    trainer = fit(seen, ZNorm(), monitor, package=package, gradient_clip_val=0.5)
    assert trainer.callbacks[0] is monitor
    rows = monitor.history
    assert [(row["step"], row["name"]) for row in rows] == [(step, name) for step in range(3) for name in NAMES]
    for row in rows:
        raw, received = (gradients[row["step"]][row["name"]] for gradients in (seen.raw, seen.received))
        assert {figure: row[figure] for figure in FIGURES} == pytest.approx(figures_by_numpy(raw, 0.01))
        expected = figures_by_numpy(received, 0.01)
        assert {figure: row[f"received_{figure}"] for figure in FIGURES} == pytest.approx(expected, abs=1e-7)
        assert row["cosine"] == pytest.approx(cosine_by_numpy(raw, received))
        assert row["ndim"] == raw.ndim
    total = math.hypot(*(row["received_norm"] for row in rows[:4]))
    assert total == pytest.approx(0.5, rel=1e-4)


def test_znorm_gives_unit_std_and_the_cosine_of_its_own_statistics():
    logger = recording_logger("lightning.pytorch", prefix=("znorm/", "grad"))
    monitor = GradientMonitor("layers", every_n_steps=1)
    fit(ZNorm(log_stats="layers"), monitor, logger=logger, log_every_n_steps=1, max_steps=1)
    (_, znorm), (_, ours) = logger.rows
    for row in monitor.history:
        name, (mean, std) = row["name"], (znorm[f"znorm/{kind}/{row['name']}"] for kind in ("mean", "std"))
        assert (row["mean"], row["std"]) == pytest.approx((mean, std), rel=1e-6)
        assert row["received_std"] == pytest.approx(1, abs=1e-6)
        assert row["cosine"] == pytest.approx(std / math.hypot(mean, std), abs=1e-6)
        for figure in FIGURES:
            assert ours[f"grad/{figure}/{name}"] == row[figure]
            assert ours[f"grad_received/{figure}/{name}"] == row[f"received_{figure}"]
        assert ours[f"grad/cosine/{name}"] == row["cosine"]
    assert len(ours) == 4 * 9


def test_the_summary_is_that_of_the_history():
    logger = recording_logger("lightning.pytorch", prefix="grad")
    monitor = GradientMonitor(near_zero=0.05)
    fit(GradientCentralization(), monitor, logger=logger, log_every_n_steps=2, max_steps=2)
    ((step, metrics),) = logger.rows
    rows, numels = monitor.history, [30, 5, 15, 3]
    assert step == 1
    for prefix, key in (("grad", ""), ("grad_received", "received_")):
        stds = sorted(row[f"{key}std"] for row in rows)
        share = sum(row[f"{key}near_zero"] * numel for row, numel in zip(rows, numels, strict=True)) / sum(numels)
        expected = {
            "norm": math.hypot(*(row[f"{key}norm"] for row in rows)),
            "mean_abs": sum(abs(row[f"{key}mean"]) for row in rows) / 4,
            "std_min": stds[0],
            "std_median": stds[1],
            "std_max": stds[3],
            "near_zero": share,
        }
        for name, value in expected.items():
            assert metrics.pop(f"{prefix}/{name}") == pytest.approx(value)
    cosines = [row["cosine"] for row in rows]
    assert metrics == {
        "grad/cosine_mean": pytest.approx(sum(cosines) / 4),
        "grad/cosine_min": pytest.approx(min(cosines)),
    }


@pytest.mark.parametrize("package", FIRST_PACKAGE)
@pytest.mark.parametrize("kind", [{"foreach": False}, {"fused": True}], ids=str)
def test_a_grad_scaler_makes_no_difference(package, kind):
    rows = []
    for precision in ("32-true", "16-mixed"):
        torch.manual_seed(0)
        monitor = GradientMonitor(every_n_steps=1)
        module = make_module(package, optimizer=lambda p: torch.optim.SGD(p, lr=0.1, **kind))
        fit(ZNorm(), monitor, package=package, module=module, max_steps=1, **precision_arguments(package, precision))
        rows.append(monitor.history)
    for plain, scaled in zip(*rows, strict=True):
        assert plain == {key: pytest.approx(value, abs=5e-3) for key, value in scaled.items()}


def test_a_step_that_the_scaler_skips_is_not_recorded():
    module = make_module()
    step = module.training_step
    module.training_step = lambda batch, batch_idx: step(batch, batch_idx) * (torch.inf if batch_idx == 1 else 1)
    monitor = GradientMonitor(every_n_steps=1)
    fit(monitor, module=module, **precision_arguments("lightning.pytorch", "16-mixed"))
    assert {row["step"] for row in monitor.history} == {0, 2}


def test_gradients_that_a_transform_takes_away_are_nan():
    module = make_module()
    step = module.training_step
    module.training_step = lambda batch, batch_idx: step(batch, batch_idx) * (torch.inf if batch_idx == 1 else 1)
    monitor = GradientMonitor(every_n_steps=1)
    fit(ZNorm(nonfinite="skip"), monitor, module=module)
    for row in monitor.history:
        assert math.isnan(row["received_norm"]) == math.isnan(row["std"]) == (row["step"] == 1)


@pytest.mark.parametrize("package", FIRST_PACKAGE)
def test_several_optimizers(package):
    logger = recording_logger(package, prefix="grad")
    monitor = GradientMonitor(every_n_steps=2)
    fit(ZNorm(), monitor, package=package, module=gan(package, False), max_epochs=1, max_steps=-1, logger=logger)
    rows = monitor.history
    assert {row["step"] for row in rows} == {1, 3, 5, 7, 9}
    for row in rows:
        assert row["name"].startswith("discriminator" if row["optimizer"] else "generator")
    assert len(rows) == 5 * 8
    assert [{name.split("/")[1] for name in metrics} for _, metrics in logger.rows[:2]] == [
        {"optimizer_0"},
        {"optimizer_1"},
    ]


def test_znorm_of_the_raw_gradient_is_what_is_received():
    """The two moments by the same training, gradient by gradient."""
    seen, monitor = look(), GradientMonitor(every_n_steps=1)
    fit(seen, ZNorm(), monitor, max_steps=1)
    for row in monitor.history:
        expected = torch.from_numpy(znorm_by_numpy(seen.raw[0][row["name"]]).astype(float))
        assert row["received_norm"] == pytest.approx(expected.norm().item(), rel=1e-6)
