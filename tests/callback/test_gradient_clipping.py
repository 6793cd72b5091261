"""`GradientClipping` against a norm in 80-bit arithmetic, and against the Trainer's own clipping."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from lightning_znorm import GradientClipping, ZNorm, attach
from lightning_znorm.backends import clipping, generic
from lightning_znorm.backends.choice import CPU, GENERIC
from tests.helpers import PACKAGES, make_module, make_trainer, parameter, relative_error, small_network

SHAPES = [(3, 4), (1,), (5000,), (2, 3, 2, 2), (200, 60)]


def make_gradients(dtype=torch.float32, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    return [((torch.randn(s, generator=generator, dtype=torch.float64) + 0.1) * scale).to(dtype) for s in SHAPES]


def clip_by_numpy(gradients, max_norm, norm_type=2.0):
    exact = [gradient.detach().double().numpy().astype(np.longdouble) for gradient in gradients]
    together = np.abs(np.concatenate([each.ravel() for each in exact]))
    norm = together.max() if norm_type == math.inf else (together**norm_type).sum() ** (1 / np.longdouble(norm_type))
    return [each * min(1, max_norm / (norm + np.longdouble(1e-6))) for each in exact]


@pytest.fixture(params=["cpu", "generic", "without float64"])
def backend(request, monkeypatch):
    if request.param != "cpu":
        monkeypatch.setattr("lightning_znorm.functional.plain.choose", lambda gradients: GENERIC)
    if request.param == "without float64":
        for module in (generic, clipping):
            monkeypatch.setattr(module, "widest_dtype", lambda device: torch.float32)
    return request.param


@pytest.mark.parametrize("norm_type", [2.0, 1.0, 3, math.inf])
@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_against_80_bits(backend, norm_type, max_norm):
    for dtype, bound in ((torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 8e-3), (torch.float64, 1e-12)):
        if dtype == torch.float64 and backend == "without float64":
            continue
        parameters = [parameter(gradient) for gradient in make_gradients(dtype)]
        before = [each.grad.clone() for each in parameters]
        expected = clip_by_numpy(before, max_norm, norm_type)
        stats = GradientClipping(max_norm, norm_type, log_stats="layers").transform(parameters, None)
        for each, gradient, exact in zip(parameters, before, expected, strict=True):
            if max_norm == 1e6:
                assert torch.equal(each.grad, gradient)
            assert relative_error(each.grad, exact) < bound, (dtype, each.shape)
        means = torch.tensor([gradient.double().mean() for gradient in before])
        stds = torch.tensor([gradient.double().std(correction=0) for gradient in before])
        torch.testing.assert_close(stats.mean.double(), means, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(stats.std.double(), stds, rtol=1e-5, atol=1e-7)
        assert (stats.cosine == 1).all()


@pytest.mark.parametrize("scale", [1e-30, 1e17, 1e30])
def test_squares_neither_overflow_nor_vanish(scale):
    """Where those of float32 do."""
    parameters = [parameter(gradient) for gradient in make_gradients(scale=scale)]
    expected = clip_by_numpy([each.grad for each in parameters], 1.0)
    GradientClipping().transform(parameters, None)
    for each, exact in zip(parameters, expected, strict=True):
        assert relative_error(each.grad, exact) < 1e-6


def test_gradients_that_are_still_scaled(backend):
    parameters = [parameter(gradient) for gradient in make_gradients()]
    expected = [1024 * exact for exact in clip_by_numpy([each.grad for each in parameters], 0.5)]
    for each in parameters:
        each.grad.mul_(1024)
    stats = GradientClipping(0.5, log_stats="summary").transform(parameters, torch.tensor([1024.0]))
    for each, exact in zip(parameters, expected, strict=True):
        assert relative_error(each.grad, exact) < 1e-6
    assert stats.mean[2].item() == pytest.approx(make_gradients()[2].mean().item(), rel=1e-4)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("norm_type", [2.0, math.inf])
def test_what_is_not_finite_is_neither_spread_nor_hidden(backend, bad, norm_type):
    parameters = [parameter(gradient) for gradient in make_gradients()]
    parameters[2].grad[7] = bad
    before = [each.grad.clone() for each in parameters]
    GradientClipping(0.5, norm_type).transform(parameters, None)
    for each, gradient in zip(parameters, before, strict=True):
        torch.testing.assert_close(each.grad, gradient, rtol=0, atol=0, equal_nan=True)


def test_statistics_are_measured_only_to_be_logged(monkeypatch):
    monkeypatch.setattr(
        "lightning_znorm.functional.plain.choose", lambda gradients: dataclasses.replace(CPU, measure=None)
    )
    weight = parameter(torch.full((5,), 3.0))
    assert len(GradientClipping().transform([weight], None)) == 0
    assert weight.grad.norm().item() == pytest.approx(1.0)


def test_gradients_of_zeros_stay():
    weight = parameter(torch.zeros(5))
    GradientClipping().transform([weight], None)
    assert not weight.grad.any()


def test_only_what_is_selected_counts_in_the_norm():
    network = small_network()
    for each in network.parameters():
        each.grad = torch.full_like(each, 0.5)
    matrices = [each for each in network.parameters() if each.ndim == 2]
    expected = clip_by_numpy([each.grad for each in matrices], 0.1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    attach(optimizer, GradientClipping(0.1, min_ndim=2))
    optimizer.step()
    for each, exact in zip(matrices, expected, strict=True):
        assert relative_error(each.grad, exact) < 1e-6
    assert all((each.grad == 0.5).all() for each in network.parameters() if each.ndim == 1)


@pytest.mark.parametrize("package", PACKAGES)
def test_training_is_that_of_the_trainers_own_clipping(package):
    trained = []
    for arguments in ({"callbacks": [GradientClipping(0.05)]}, {"gradient_clip_val": 0.05}, {}):
        torch.manual_seed(0)
        module = make_module(package)
        make_trainer(package, max_steps=10, **arguments).fit(module)
        trained.append(torch.cat([each.detach().flatten() for each in module.parameters()]))
    torch.testing.assert_close(trained[0], trained[1], rtol=1e-6, atol=1e-7)
    assert (trained[0] - trained[2]).abs().max() > 1e-3


def test_the_trainers_clipping_beside_it_is_warned_of():
    trainer = make_trainer(max_steps=1, callbacks=[GradientClipping()], gradient_clip_val=1.0)
    with pytest.warns(UserWarning, match="clips what `GradientClipping` returns.*which clips already. Remove one"):
        trainer.fit(make_module())


def test_clipping_by_hand_beside_it_is_warned_of():
    module = make_module()
    module.automatic_optimization = False

    def training_step(batch, batch_idx):
        optimizer = module.optimizers()
        optimizer.zero_grad()
        module.manual_backward(torch.nn.functional.mse_loss(module.network(batch[0]), batch[1]))
        module.clip_gradients(optimizer, gradient_clip_val=0.1, gradient_clip_algorithm="norm")
        optimizer.step()

    module.training_step = training_step
    with pytest.warns(UserWarning, match="is one clipping too many: `GradientClipping` clips when the optimizer steps"):
        make_trainer(max_steps=1, callbacks=[GradientClipping()]).fit(module)


def test_before_znorm_it_makes_no_difference():
    trained = []
    for callbacks in ([GradientClipping(0.01), ZNorm()], [ZNorm()]):
        torch.manual_seed(0)
        module = make_module()
        make_trainer(max_steps=3, callbacks=callbacks).fit(module)
        trained.append(torch.cat([each.detach().flatten() for each in module.parameters()]))
    torch.testing.assert_close(*trained)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_norm": 0}, "`max_norm` to be a positive number, but got 0"),
        ({"max_norm": math.inf}, "`max_norm` to be a positive number, but got inf"),
        ({"max_norm": "1"}, "`max_norm` to be a positive number, but got '1'"),
        ({"norm_type": -1}, "`norm_type` to be a positive number, but got -1"),
        ({"norm_type": math.nan}, "`norm_type` to be a positive number, but got nan"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        GradientClipping(**arguments)
