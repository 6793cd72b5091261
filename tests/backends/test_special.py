"""Every backend with what is special: constants, infinities, lists of everything, other devices and modes."""

import math
import warnings
from itertools import product

import pytest
import torch

from lightning_znorm.backends import _workspace, cpu, generic, reference
from tests.backends.helpers import draw, is_interpreted
from tests.helpers import relative_error, znorm_by_numpy


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_constant_becomes_exactly_zero(znorm_, dtype):
    sizes = [1, 5, 4096, 4097] if is_interpreted(znorm_) else [1, 2, 5, 4096, 4097, 50_000]
    for size, value, eps in product(sizes, [0.0, 0.1, -3e-7, 1e-30, 1e36], [1e-10, 1e-45, 5e-324]):
        case, gradient = f"{size=}, {value=}, {eps=}", torch.full((size,), value, dtype=dtype)
        exact = gradient[0].double().item()
        mean, std, cosine = znorm_([gradient], eps=eps)[:, 0].tolist()
        assert torch.equal(gradient, torch.full_like(gradient, value if size == 1 else 0.0)), case
        assert (mean, std) == (exact, 0), case
        assert cosine == (1 if exact == 0 or size == 1 else 0), case


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_nonfinite_is_neither_spread_nor_hidden(znorm_, bad):
    for size, dtype in product([1, 3, 4097, 50_000], [torch.float32, torch.float16]):
        case, sick, healthy = f"{size=}, {dtype=}", draw(size, dtype=dtype), draw(size + 1, 0.3, dtype=dtype)
        sick[size // 2] = bad
        before, expected = sick.clone(), znorm_by_numpy(healthy)
        mean, std, cosine = znorm_([sick, healthy], eps=1e-10)
        assert torch.equal(sick.nan_to_num(7.0, 8.0, 9.0), before.nan_to_num(7.0, 8.0, 9.0)), case
        assert relative_error(healthy, expected) < (1e-6 if dtype == torch.float32 else 1e-3), case
        assert not math.isfinite(mean[0]), case
        assert math.isnan(std[0]), case
        assert cosine[0] == 1, case


@pytest.mark.parametrize("size", [5, 5000])
def test_opposite_infinities(znorm_, size):
    gradient = draw(size)
    gradient[0], gradient[-1] = math.inf, -math.inf
    before = gradient.clone()
    assert torch.isnan(znorm_([gradient], eps=1e-10)[1, 0])
    assert torch.equal(gradient, before)


def test_a_list_of_everything_at_once(znorm_, monkeypatch):
    """Each gradient as if it were alone, whatever its neighbours."""
    monkeypatch.setattr(_workspace, "_CACHED", 100_000)
    large = (5000, 12_000) if is_interpreted(znorm_) else (5000, 40_000, 220_000)
    gradients = [
        draw(size, mean, scale, dtype, seed)
        for seed, (size, mean, scale, dtype) in enumerate(
            [(n, 0.1, 1.0, torch.float32) for n in (1, 2, 7, 500, 64, 64, 300, 4096, *large)]
            + [(64, m, 1e-3, torch.float32) for m in (0.0, 5.0, 1000.0) for _ in range(17)]
            + [(n, 0.1, 1e-2, dtype) for n in (3, 900, large[-1]) for dtype in (torch.bfloat16, torch.float16)]
            + [(100, 0.0, 1e-25, torch.float32), (100, 0.0, 1e25, torch.float32), (50, 0.0, 1.0, torch.float64)]
        )
    ]
    gradients[-20].fill_(0.25)
    gradients[-21][3] = math.nan
    gradients[-22] = draw(64).view(8, 8).t()
    gradients[-23] = draw(128)[::2]
    alone = [gradient.clone(memory_format=torch.preserve_format) for gradient in gradients]
    stats = znorm_(gradients, eps=1e-12)
    for position, gradient in enumerate(alone):
        torch.testing.assert_close(
            stats[:, position].double(),
            znorm_([gradient], eps=1e-12)[:, 0].double(),
            equal_nan=True,
            rtol=1e-6,
            atol=1e-9,
        )
        torch.testing.assert_close(gradients[position], gradient, equal_nan=True)


def test_sums_that_overflow_warn_of_nothing():
    gradients = [torch.full((size,), 3e38) for size in (2, 128, 300, 20_000)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cpu.measure(gradients).mean.tolist() == [torch.tensor(3e38).item()] * 4
        cpu.znorm_(gradients, 1e-10)
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("center", [True, False])
def test_many_zero_and_constant_gradients_are_treated_together(monkeypatch, center):
    """Nothing is left to be treated alone, which would take far longer."""
    monkeypatch.setattr(cpu, "_normalize_", None)
    values = (0.0, -0.0, 0.1, -3e-9, 1e12)
    gradients = [torch.full((size,), value) for value in values for size in (2, 64, 128, 300)] + [draw(64)]
    expected = [gradient.clone() for gradient in gradients]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stats = cpu.znorm_(gradients, 1e-10, center=center)
        moments = cpu.measure(expected)
    exact = reference.znorm_(expected, 1e-10, center=center)
    torch.testing.assert_close(stats[:, :-1], exact[:, :-1], rtol=1e-6, atol=0)
    torch.testing.assert_close(moments.mean[:-1], exact[0, :-1], rtol=1e-6, atol=0)
    for gradient, each in zip(gradients[:-1], expected, strict=False):
        torch.testing.assert_close(gradient, each, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_nothing_waits_for_the_device(dtype):
    """Tensors without values: reading one is an error."""
    gradients = [torch.empty(shape, dtype=dtype, device="meta") for shape in [(), (5,), (100, 100), (3, 2, 3, 3)]]
    for scale in (None, torch.empty(1, device="meta")):
        assert reference.znorm_(gradients, 1e-10, scale).shape == (3, 4)
        assert generic.znorm_(gradients, 1e-10, scale).shape == (3, 4)
        assert reference.centralize_(gradients, scale).shape == (3, 4)
        assert generic.centralize_(gradients, scale).shape == (3, 4)


@pytest.mark.parametrize("order", ["first", "later"])
def test_whatever_the_default_device_and_the_mode(znorm_, order):
    sizes = [5, 900 if order == "first" else 901, 70_000]
    gradients = [draw(size) for size in sizes]
    expected = [znorm_by_numpy(gradient) for gradient in gradients]
    surroundings = [torch.device("meta"), torch.inference_mode(), torch.no_grad()]
    for surrounding in surroundings if order == "first" else reversed(surroundings):
        copies = [gradient.clone() for gradient in gradients]
        with surrounding:
            znorm_(copies, eps=1e-10)
        for copy, exact in zip(copies, expected, strict=True):
            assert relative_error(copy, exact) < 1e-6


def test_the_reference_takes_a_detour_from_devices_without_float64(monkeypatch):
    monkeypatch.setattr(reference, "widest_dtype", lambda device: torch.float32)
    gradient = draw(100, 2.0)
    expected = znorm_by_numpy(gradient)
    assert reference.znorm_([gradient], eps=1e-10).device == torch.device("cpu")
    assert relative_error(gradient, expected) < 1e-6


@pytest.mark.parametrize("threads", [1, 2])
def test_same_bits_every_time_and_wherever_it_lies(znorm_, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for size in (50, 5_000, 20_000) if is_interpreted(znorm_) else (50, 5_000, 300_000):
            gradient = draw(size, 0.1)
            results = []
            for shift in (0, 0, 1, 3):
                place = torch.empty(size + 8)[shift : shift + size].copy_(gradient)
                znorm_([place], eps=1e-10)
                results.append(place.clone())
            assert all(torch.equal(results[0], other) for other in results)
    finally:
        torch.set_num_threads(before)
