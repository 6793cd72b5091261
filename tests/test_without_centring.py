"""ZNorm with `center=False`: a division by the root mean square."""

import math
from itertools import product

import numpy as np
import pytest
import torch

from lightning_znorm import ZNorm, znorm_
from lightning_znorm.backends import cpu, generic, reference
from tests import distributions
from tests.helpers import make_module, make_trainer, parameter, relative_error

BACKENDS = {"reference": reference, "cpu": cpu, "generic": generic, "float32 alone": generic}
SIZES = [2, 100, 4096, 4097, 50_000]


@pytest.fixture(params=BACKENDS, name="scale_")
def backend(request, monkeypatch):
    if request.param == "float32 alone":
        monkeypatch.setattr(generic, "widest_dtype", lambda device: torch.float32)
    return lambda gradients, eps, scale=None: BACKENDS[request.param].znorm_(gradients, eps, scale, center=False)


def draw(size, mean=0.0, scale=1.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(size)
    return ((torch.randn(size, generator=generator, dtype=torch.float64) + mean) * scale).to(dtype)


def scaled_by_numpy(gradient, eps=1e-10):
    exact = gradient.detach().double().numpy().astype(np.longdouble)
    return exact / (np.sqrt(np.square(exact).mean()) + np.longdouble(eps))


def test_float32(scale_):
    for size, mean, scale in product(SIZES, (0.0, 1.0, 10.0, 1000.0), (1e-38, 1e-8, 1.0, 1e34)):
        case, gradient = f"{size=}, {mean=}, {scale=}", draw(size, mean, scale)
        exact, expected = gradient.double(), scaled_by_numpy(gradient, 1e-10 * scale)
        found_mean, std, cosine = scale_([gradient], 1e-10 * scale)[:, 0].tolist()
        assert relative_error(gradient, expected) < 1e-6, case
        assert gradient.double().norm() == pytest.approx(math.sqrt(size), rel=1e-6), case
        assert found_mean == pytest.approx(exact.mean().item(), rel=1e-6, abs=1e-6 * scale), case
        assert std == pytest.approx(exact.std(correction=0).item(), rel=1e-6 if mean <= 10 else 1e-4), case
        assert cosine == 1, case


@pytest.mark.parametrize("name", distributions.DISTRIBUTIONS)
def test_distributions(scale_, name):
    for size in (100, 4097, 50_000):
        gradient, eps = distributions.draw(name, size)
        expected = scaled_by_numpy(gradient, eps)
        scale_([gradient], eps)
        assert relative_error(gradient, expected) < 1e-6, size


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(scale_, dtype):
    for size, mean in product(SIZES, (0.0, 10.0)):
        gradient = draw(size, mean, 0.01, dtype)
        expected = torch.from_numpy(scaled_by_numpy(gradient).astype(np.float64))
        scale_([gradient], 1e-10)
        bound = 1e-12 if dtype == torch.float64 else torch.finfo(dtype).eps
        spacing = bound * 2.0 ** expected.abs().clamp(min=1e-3).log2().floor()
        assert ((gradient.double() - expected).abs() <= spacing).all(), f"{size=}, {mean=}"


def test_constants_become_signs_and_zeros_stay(scale_):
    for size, value in product((2, 5, 5000), (0.1, -3e-7, 1e30)):
        gradient = torch.full((size,), value)
        mean, std, cosine = scale_([gradient], abs(value) * 1e-10)[:, 0].tolist()
        assert (gradient - math.copysign(1, value)).abs().max() <= 1.2e-7, f"{size=}, {value=}"
        assert (mean, std, cosine) == (pytest.approx(value, rel=1e-6), 0, 1), f"{size=}, {value=}"
    half = torch.full((5000,), 0.5)
    scale_([half], 0.5)
    torch.testing.assert_close(half, torch.full((5000,), 0.5))
    for size, eps in product((1, 2, 5000), (1e-10, 5e-324)):
        gradient = torch.zeros(size)
        assert scale_([gradient], eps).flatten().tolist() == [0, 0, 1], size
        assert not gradient.any(), f"{size=}, {eps=}"


def test_one_element_and_what_is_not_finite_stay(scale_):
    for bad, size in product((math.inf, -math.inf, math.nan), (5, 5000)):
        single, sick, healthy = torch.tensor([0.7]), draw(size), draw(size, 2.0)
        sick[size // 2] = bad
        before, expected = sick.clone(), scaled_by_numpy(healthy)
        stats = scale_([single, sick, healthy], 1e-10)
        assert single.item() == pytest.approx(0.7), size
        assert torch.equal(sick.nan_to_num(7.0, 8.0, 9.0), before.nan_to_num(7.0, 8.0, 9.0)), f"{bad=}, {size=}"
        assert relative_error(healthy, expected) < 1e-6, size
        assert stats[1].isnan().tolist() == [False, True, False], f"{bad=}, {size=}"
        assert stats[2].tolist() == [1, 1, 1], f"{bad=}, {size=}"


def test_scaled_gradients(scale_):
    for size in (2, 100, 5000):
        gradient = draw(size, 0.5, 1e-3)
        exact, expected = gradient.double(), 1024 * scaled_by_numpy(gradient, eps=1e-4)
        gradient.mul_(1024)
        mean, std, _ = scale_([gradient], 1e-4, torch.tensor([1024.0]))[:, 0].tolist()
        assert relative_error(gradient, expected) < 1e-6, size
        assert (mean, std) == (pytest.approx(exact.mean().item()), pytest.approx(exact.std(correction=0).item())), size


def test_strides_and_neighbours_are_kept(scale_):
    bucket = draw(60_000)
    before = bucket.clone()
    for gradient in (draw(375).view(3, 5, 5, 5).to(memory_format=torch.channels_last), draw(99)[::3], bucket[7:-7]):
        expected, stride = scaled_by_numpy(gradient), gradient.stride()
        scale_([gradient], 1e-10)
        assert gradient.stride() == stride
        assert relative_error(gradient, expected) < 1e-6
    assert torch.equal(bucket[:7], before[:7])
    assert torch.equal(bucket[-7:], before[-7:])


def test_a_list_of_everything_at_once(scale_):
    sizes = [1, 2, 7, 7, 300, 4096, 5000, 40_000]
    gradients = [draw(size, mean, dtype=dtype) for size, mean, dtype in product(sizes, (0.1, 5.0), (torch.float32,))]
    gradients += [draw(size, 0.1, 0.01, dtype) for size, dtype in product(sizes, (torch.bfloat16, torch.float64))]
    gradients.append(torch.full((7,), 0.5))
    alone = [gradient.clone() for gradient in gradients]
    scale_(gradients, 1e-10)
    for position, gradient in enumerate(alone):
        scale_([gradient], 1e-10)
        torch.testing.assert_close(gradients[position], gradient)


def test_the_function_and_the_callback():
    gradient = draw(100, 3.0)
    expected = scaled_by_numpy(gradient, eps=0.1)
    stats = znorm_(parameter(gradient), eps=0.1, center=False)
    assert relative_error(gradient, expected) < 1e-6
    assert stats.cosine.tolist() == [1]

    means, sizes = [], []

    class Recording(ZNorm):
        def transform(self, parameters, grad_scale=None):
            stats = super().transform(parameters, grad_scale)
            means.extend(abs(p.grad.mean().item()) for p in parameters)
            sizes.extend(p.grad.norm().item() / math.sqrt(p.grad.numel()) for p in parameters)
            return stats

    make_trainer(max_steps=2, callbacks=[Recording(center=False)]).fit(make_module())
    assert sizes == [pytest.approx(1, rel=1e-6)] * 8
    assert max(means) > 0.1


@pytest.mark.parametrize("center", [None, "no", 2, 0.0, torch.tensor(True)], ids=repr)
def test_refuses_what_is_neither_true_nor_false(center):
    for make in (lambda: ZNorm(center=center), lambda: znorm_(parameter(torch.ones(2)), center=center)):
        with pytest.raises(ValueError, match="Expected argument `center` to be True or False"):
            make()
