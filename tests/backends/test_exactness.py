"""Every backend against 80-bit arithmetic: distributions, sizes, magnitudes, dtypes and strides."""

import math
from itertools import product

import numpy as np
import pytest
import torch

from lightning_znorm.backends import cpu, generic
from tests import distributions
from tests.backends.helpers import (
    LAYOUTS,
    MEANS,
    SCALES,
    bound,
    by_triton,
    draw,
    is_interpreted,
    most_ulps,
    sizes_for,
    ulps,
)
from tests.helpers import relative_error, znorm_by_numpy


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("million_at", [[1.0], pytest.param(SCALES, marks=pytest.mark.long)], ids=["one", "all"])
def test_float32(znorm_, mean, million_at):
    for size, scale in product(sizes_for(znorm_), SCALES):
        if size > 1_000_000 and scale not in million_at:
            continue
        scale = min(scale, 3e38 / (mean + 10))  # so that float32 can hold it
        case, gradient = f"{size=}, {scale=}", draw(size, mean, scale)
        exact, expected = gradient.double().numpy().astype(np.longdouble), znorm_by_numpy(gradient, eps=1e-10 * scale)
        found_mean, std, cosine = znorm_([gradient], eps=1e-10 * scale)[:, 0].tolist()
        assert relative_error(gradient, expected) < bound(mean), case
        assert abs(found_mean - float(exact.mean())) < 1e-6 * exact.std() + 1e-7 * abs(exact.mean()), case
        assert std == pytest.approx(float(exact.std()), rel=bound(mean)), case
        exact_cosine = (exact * expected).sum() / np.sqrt((exact**2).sum() * (expected**2).sum())
        assert cosine == pytest.approx(float(exact_cosine)), case


def errors_of(znorm_, name, sizes):
    """The error of each size, checked to come with finite and right statistics."""
    errors = {}
    for size in sizes:
        for mean in (0.0, 0.9, 10.0) if name not in ("near the maximum", "denormal") else (0.0,):
            gradient, eps = distributions.draw(name, size, mean)
            exact, expected = gradient.double(), znorm_by_numpy(gradient, eps)
            found_mean, std, cosine = znorm_([gradient], eps=eps)[:, 0].double()
            errors[name, size, mean] = relative_error(gradient, expected)
            exact_mean, exact_std = exact.mean(), exact.std(correction=0)
            assert abs(found_mean - exact_mean) <= 1e-6 * exact_std + 1e-7 * abs(exact_mean)
            assert abs(std - exact_std) <= 1e-6 * exact_std
            assert cosine == pytest.approx((exact_std / torch.hypot(exact_mean, exact_std)).item())
    return errors


@pytest.mark.parametrize("name", distributions.DISTRIBUTIONS)
def test_distributions(znorm_, name):
    """Equal addends are all rounded the same way, so that the errors of a long float32 sum of them add up."""
    sizes = (100, math.prod(distributions.LAYER), 4096, 8192, 8193, 50_000)
    errors = errors_of(znorm_, name, (100, 4096, 8193) if is_interpreted(znorm_) else sizes)
    assert not {case: error for case, error in errors.items() if not error < 1e-6}


@pytest.mark.parametrize(
    ("name", "size"),
    [
        *((name, 1_500_000) for name in ("signs", "mostly zeros")),
        *(
            pytest.param(name, 3_000_000, marks=pytest.mark.long)
            for name in ("signs", "few values", "rounded to bfloat16", "mostly zeros")
        ),
    ],
)
@pytest.mark.parametrize("backend", [cpu, generic], ids=["cpu", "generic"])
def test_distributions_of_millions(backend, name, size):
    errors = errors_of(backend.znorm_, name, (size,))
    assert not {case: error for case, error in errors.items() if not error < 1e-6}


def test_distributions_of_other_dtypes(znorm_):
    for name in distributions.DISTRIBUTIONS:
        for size in (100, 4097) if is_interpreted(znorm_) else (100, 4097, 20_000):
            gradient, eps = distributions.draw(name, size)
            if name not in ("near the maximum", "denormal", "one outlier"):  # float16 does not hold these
                half = gradient.half()
                expected = torch.from_numpy(znorm_by_numpy(half, eps).astype(np.float64))
                znorm_([half], eps=eps)
                assert ulps(half, expected) <= 1, (name, size)
            if name != "denormal" or most_ulps(znorm_) == 1:  # Triton's interpreter reads them wrong
                half = gradient.bfloat16()
                expected = torch.from_numpy(znorm_by_numpy(half, eps).astype(np.float64))
                znorm_([half], eps=eps)
                assert ulps(half, expected) <= most_ulps(znorm_), (name, size)
            double = gradient.double()
            expected = znorm_by_numpy(double, eps)
            znorm_([double], eps=eps)
            assert relative_error(double, expected) < 1e-12, (name, size)


@pytest.mark.long
@pytest.mark.parametrize("mean", MEANS)
def test_thirty_million_elements(mean):
    gradient = draw(30_000_001, mean)
    expected = znorm_by_numpy(gradient)
    cpu.znorm_([gradient], eps=1e-10)
    assert relative_error(gradient, expected) < bound(mean)


def test_triton_in_short():
    """A part of a tile and several, in each dtype, scaled, strided, beside a sick and a constant one."""
    gradients = [
        draw(size, 0.5, 0.01, dtype).mul_(1024)
        for size in (2, 1000, 4097)
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
    ]
    gradients += [draw(240, 10.0).view(3, 4, 20).transpose(0, 1), torch.full((300,), 0.25), draw(100)]
    gradients[-1][7] = math.inf
    expected = [1024 * znorm_by_numpy(gradient, eps=1024e-6) for gradient in gradients[:-2]]
    by_triton(gradients, 1e-6, torch.tensor([1024.0]))
    for gradient, exact in zip(gradients[:-2], expected, strict=True):
        bound = 1e-6 if gradient.dtype == torch.float32 else torch.finfo(gradient.dtype).eps
        assert relative_error(gradient, exact) < bound, (gradient.shape, gradient.dtype)
    assert not gradients[-2].any()
    assert torch.equal(gradients[-1].nan_to_num(posinf=9.0), draw(100).index_fill(0, torch.tensor(7), 9.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_the_exact_result_rounded_once(znorm_, dtype):
    for size, mean in product(sizes_for(znorm_), [0.0, 0.5, 10.0]):
        gradient = draw(size, mean, 0.01, dtype)
        expected = torch.from_numpy(znorm_by_numpy(gradient).astype(np.float64))
        znorm_([gradient], eps=1e-10)
        assert ulps(gradient, expected) <= most_ulps(znorm_), f"{size=}, {mean=}"


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_float64_to_twelve_digits(znorm_, scale):
    gradient = draw(10_007, 10.0, scale, torch.float64)
    expected = znorm_by_numpy(gradient, eps=1e-10 * scale)
    znorm_([gradient], eps=1e-10 * scale)
    assert relative_error(gradient, expected) < 1e-12


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides(znorm_, layout):
    for shape, mean in product([(3, 4, 5, 6), (40, 30, 5, 5)], [0.0, 10.0]):
        case, gradient = f"{shape=}, {mean=}", LAYOUTS[layout](draw(math.prod(shape), mean).view(shape))
        whole = gradient.new_empty(0).set_(gradient.untyped_storage())
        is_ours = torch.zeros_like(whole, dtype=torch.bool)
        is_ours.as_strided(gradient.shape, gradient.stride(), gradient.storage_offset()).fill_(True)
        others, expected, stride = whole[~is_ours].clone(), znorm_by_numpy(gradient), gradient.stride()
        znorm_([gradient], eps=1e-10)
        assert gradient.stride() == stride, case
        assert relative_error(gradient, expected) < 1e-6, case
        assert torch.equal(whole[~is_ours], others), case


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scaled_gradients(znorm_, dtype):
    """Statistics and eps are those without the scale, the result is multiplied by it."""
    for size in (2, 100, 5000, 50_000):
        gradient, scale = draw(size, 0.5, 1e-3).to(dtype), torch.tensor([1024.0])
        expected = 1024 * znorm_by_numpy(gradient, eps=1e-4)
        exact = gradient.double()
        gradient.mul_(1024)
        mean, std, _ = znorm_([gradient], eps=1e-4, grad_scale=scale)[:, 0].tolist()
        assert relative_error(gradient, expected) < (1e-6 if dtype == torch.float32 else 4e-3), size
        exact_std = exact.std(correction=0).item()
        assert (mean, std) == (pytest.approx(exact.mean().item()), pytest.approx(exact_std)), size


def test_one_outlier_far_away(znorm_):
    """The first element, to which a backend may refer the others, is a thousand deviations off."""
    for size in (1000, 100_000):
        gradient = draw(size)
        gradient[0] = 1e3
        expected = znorm_by_numpy(gradient)
        znorm_([gradient], eps=1e-10)
        assert relative_error(gradient, expected) < 1e-6
