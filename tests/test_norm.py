"""The joint norm of gradients and the factor that is applied to all of them, against 80-bit arithmetic."""

import math
from itertools import product

import numpy as np
import pytest
import torch

from lightning_znorm.backends import clipping, cpu_clipping, reference
from tests import distributions
from tests.backends.helpers import LAYOUTS, SCALES, draw, ulps
from tests.helpers import relative_error

# around what is treated differently: gradients that are copied together, several such copies, pieces and what is left
SIZES = [1, 2, 127, 128, 129, 1000, 16_384, 16_385, 32_768, 100_003, *[4095] * 140]
NORMS = {"reference": reference.norm, "cpu": cpu_clipping.norm, "any device": clipping.norm}
SCALINGS = {"cpu": cpu_clipping.scale_, "any device": clipping.scale_}


@pytest.fixture(params=NORMS.values(), ids=NORMS.keys())
def norm(request):
    return request.param


@pytest.fixture(params=SCALINGS.values(), ids=SCALINGS.keys())
def scale_(request):
    return request.param


def norm_by_numpy(gradients, norm_type=2.0):
    exact = np.concatenate([gradient.double().numpy().astype(np.longdouble).ravel() for gradient in gradients])
    if norm_type == math.inf:
        return np.abs(exact).max()
    return (np.abs(exact) ** norm_type).sum() ** (1 / np.longdouble(norm_type))


def error(found, gradients, norm_type=2.0):
    assert found.shape == ()
    assert found.dtype == torch.float64
    return float(abs(found.item() / norm_by_numpy(gradients, norm_type) - 1))


@pytest.mark.parametrize("norm_type", [2.0, 1.0, 3, 0.5, math.inf])
def test_sizes_alone_and_together(norm, norm_type):
    for scale, mean in product((1e-8, 1.0), (0.0, 10.0)):
        gradients = [draw(size, mean, scale, seed=seed) for seed, size in enumerate(SIZES)]
        for some in ([each] for each in gradients[:10]):
            assert error(norm(some, norm_type), some, norm_type) < 3e-7, (scale, mean, some[0].shape)
        assert error(norm(gradients, norm_type), gradients, norm_type) < 1e-7, (scale, mean)


@pytest.mark.parametrize("scale", [*SCALES, 1e-42, 1e-22, 1e18])
def test_squares_neither_overflow_nor_vanish(norm, scale):
    """Where those of float32 do, in all gradients or beside others."""
    gradients = [draw(size, 0.1, scale) for size in SIZES[:10]]
    for some in (gradients, gradients[:3], [*gradients, draw(5000)], [*gradients, draw(50), draw(9000, 0, 1e-25)]):
        assert error(norm(some, 2.0), some) < 2e-7


@pytest.mark.parametrize("name", distributions.DISTRIBUTIONS)
def test_distributions(norm, name):
    """Equal addends are all rounded the same way."""
    for size in (100, 4097, 16_385, 300_000):
        gradient, _ = distributions.draw(name, size)
        assert error(norm([gradient], 2.0), [gradient]) < 5e-7, size


@pytest.mark.parametrize("value", [1.0, 0.1, 0.7, 1.3])
def test_equal_values_in_millions(norm, value):
    gradient = torch.full((3_000_000,), value)
    assert abs(norm([gradient], 2.0).item() / (math.sqrt(3_000_000) * gradient[0].item()) - 1) < 5e-7


def test_dtypes_side_by_side(norm):
    dtypes = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    for chosen in (*[[dtype] for dtype in dtypes], dtypes[:2], dtypes[:3], dtypes):
        gradients = [draw(size, 0.5, 0.1, dtype) for size in (3, 1000, 16_385, 600_000) for dtype in chosen]
        for norm_type in (2.0, math.inf):
            assert error(norm(gradients, norm_type), gradients, norm_type) < 1e-7, (chosen, norm_type)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides(norm, scale_, layout):
    for shape in ((3, 4, 5, 6), (40, 30, 5, 5)):
        gradient = LAYOUTS[layout](draw(math.prod(shape), 0.5).view(shape))
        assert error(norm([gradient], 2.0), [gradient]) < 1e-7, shape
        whole = gradient.new_empty(0).set_(gradient.untyped_storage())
        is_ours = torch.zeros_like(whole, dtype=torch.bool)
        is_ours.as_strided(gradient.shape, gradient.stride(), gradient.storage_offset()).fill_(True)
        others, expected = whole[~is_ours].clone(), gradient.double().numpy() * 0.3
        where = gradient.stride(), gradient.data_ptr()
        scale_([gradient], torch.tensor(0.3, dtype=torch.float64))
        assert (gradient.stride(), gradient.data_ptr()) == where, shape
        assert relative_error(gradient, expected) < 1e-7, shape
        assert torch.equal(whole[~is_ours], others), shape


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("norm_type", [2.0, 1.0, math.inf])
def test_the_norm_shows_what_is_not_finite(norm, norm_type, bad):
    for size, dtype in product((1, 5, 20_000), (torch.float32, torch.bfloat16, torch.float64)):
        sick = draw(size, dtype=dtype)
        sick[size // 2] = bad
        assert not norm([draw(size), sick, draw(9000)], norm_type).isfinite(), f"{size=}, {dtype=}"


def test_the_norm_of_zeros(norm):
    assert norm([torch.zeros(5), torch.zeros(5000)], 2.0) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_factor_for_all_is_rounded_once(scale_, dtype):
    for factor in (0.123456789123, 0.987654321987, 3e-5):
        gradients = [draw(size, 0.5, 1.0, dtype) for size in (1, 7, 1000, 4097, 600_000)] + [draw(9)]
        expected = [gradient.double() * factor for gradient in gradients]
        scale_(gradients, torch.tensor(factor, dtype=torch.float64))
        for gradient, exact in zip(gradients, expected, strict=True):
            if dtype.itemsize == 2 and gradient.dtype == dtype:
                assert ulps(gradient, exact) < 0.51, factor
            else:
                bound = 1e-15 if gradient.dtype == torch.float64 else 1e-7
                assert relative_error(gradient, exact.numpy()) < bound, factor


def test_a_factor_near_the_smallest_of_float32(scale_):
    gradient = draw(5000, 0.0, 1e36)
    expected = gradient.double().numpy() * 1e-37
    scale_([gradient], torch.tensor(1e-37, dtype=torch.float64))
    assert relative_error(gradient, expected) < 1e-7


def test_a_factor_that_float32_does_not_hold():
    gradients = [draw(5000, 0.0, 1e37), draw(50, 0.0, 1e38, torch.bfloat16)]
    expected = [gradient.double() * 1e-43 for gradient in gradients]
    cpu_clipping.scale_(gradients, torch.tensor(1e-43, dtype=torch.float64))
    assert relative_error(gradients[0], expected[0].numpy()) < 1e-6
    assert torch.equal(gradients[1], expected[1].bfloat16())


@pytest.mark.parametrize("factor", [math.nan, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_nan_and_one_leave_every_bit(scale_, dtype, factor):
    values = torch.tensor([0.0, -0.0, 1e-45, math.inf, -math.inf, math.nan, 3.0], dtype=dtype)
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    gradient, small = values.repeat(900), values.clone()
    scale_([gradient, small], torch.tensor(factor, dtype=torch.float64))
    for left, before in ((gradient, values.repeat(900)), (small, values)):
        assert torch.equal(left.isnan(), before.isnan())
        assert torch.equal(left.view(bits)[~left.isnan()], before.view(bits)[~before.isnan()])


@pytest.mark.parametrize("without_float64", [False, True])
def test_nothing_waits_for_the_device(monkeypatch, without_float64):
    """Tensors without values: reading one is an error."""
    if without_float64:
        monkeypatch.setattr(clipping, "widest_dtype", lambda device: torch.float32)
    gradients = [
        torch.empty(shape, dtype=dtype, device="meta")
        for shape in [(), (100, 100)]
        for dtype in (torch.float32, torch.bfloat16)
    ]
    for norm_type in (1.0, 2.0, 3.0, math.inf):
        norm = clipping.norm(gradients, norm_type)
        assert norm.dtype == (torch.float32 if without_float64 else torch.float64)
        clipping.scale_(gradients, clipping.bound(norm, 1.0, torch.empty((), device="meta")))
