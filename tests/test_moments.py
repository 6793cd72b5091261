"""`measure` and `apply_` of every backend against 80-bit arithmetic."""

import math
from itertools import product

import numpy as np
import pytest
import torch

from lightning_znorm.backends import cpu, generic, reference
from lightning_znorm.backends.moments import compute_edit
from tests import distributions
from tests.helpers import relative_error, znorm_by_numpy

BACKENDS = {"reference": reference, "cpu": cpu, "generic": generic}
SIZES = [2, 17, 4096, 4097, 100_003]
MEANS = [0.0, 1.0, 10.0, 1000.0]  # in units of the standard deviation
SCALES = [1e-38, 1e-8, 1.0, 1e34]
LAYOUTS = {
    "contiguous": lambda g: g,
    "channels_last": lambda g: g.to(memory_format=torch.channels_last),
    "every other": lambda g: g.repeat_interleave(2, dim=3)[..., ::2],
}


@pytest.fixture(params=BACKENDS, name="backend")
def backend_in_two_verbs(request):
    return BACKENDS[request.param]


@pytest.fixture(name="without_float64")
def pairs_of_float32(monkeypatch):
    monkeypatch.setattr(generic, "widest_dtype", lambda device: torch.float32)


def draw(size, mean=0.0, scale=1.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(size)
    return ((torch.randn(size, generator=generator, dtype=torch.float64) + mean) * scale).to(dtype)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def assert_exact(moments, gradients, bound, case):
    for position, gradient in enumerate(gradients):
        exact = gradient.double().numpy().astype(np.longdouble)
        mean, squares = exact.mean(), np.square(exact - exact.mean()).sum()
        assert moments.count[position] == exact.size, case
        assert abs(moments.mean[position].item() - mean) <= 1e-6 * exact.std() + 1e-7 * abs(mean), case
        assert abs(moments.squares[position].item() - squares) <= 2 * bound * squares, case


@pytest.mark.parametrize("mean", MEANS)
def test_moments_of_a_range_of_magnitudes(backend, mean):
    """Of all sizes together; a standard deviation has half the relative error of its square."""
    for scale in SCALES:
        gradients = [draw(size, mean, scale) for size in SIZES]
        before = [gradient.clone() for gradient in gradients]
        moments = backend.measure(gradients)
        assert all(t.dtype == torch.float64 and t.shape == (len(SIZES),) for t in vars(moments).values())
        assert_exact(moments, gradients, 1e-6 if mean <= 10 else 1e-4, f"{scale=}")
        assert all(torch.equal(*pair) for pair in zip(gradients, before, strict=True)), scale


@pytest.mark.parametrize("name", distributions.DISTRIBUTIONS)
def test_moments_of_distributions(backend, name):
    for size in (100, 4097, 50_000):
        gradient, _ = distributions.draw(name, size)
        assert_exact(backend.measure([gradient]), [gradient], 1e-6, f"{size=}")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_moments_of_other_dtypes(backend, dtype):
    gradients = [draw(size, 0.5, 1e-2, dtype) for size in SIZES]
    assert_exact(backend.measure(gradients), gradients, 1e-6 if dtype != torch.float64 else 1e-14, dtype)


def test_moments_of_constants_and_of_nothing(backend):
    """A rank's shard of a gradient may be empty."""
    values = [0.1, -1e30, 0.0]
    gradients = [torch.full((size,), value) for size, value in product((1, 7, 5000), values)]
    gradients += [torch.empty(0), torch.empty(3, 0, dtype=torch.bfloat16), torch.empty(0, dtype=torch.float64)]
    moments = backend.measure(gradients)
    assert moments.count.tolist() == [1, 1, 1, 7, 7, 7, 5000, 5000, 5000, 0, 0, 0]
    assert moments.mean.tolist() == [*torch.tensor(values).tolist() * 3, 0, 0, 0]
    assert moments.squares.tolist() == [0] * 12
    assert backend.measure([torch.empty(0)]).count.tolist() == [0]


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_moments_show_what_is_not_finite(backend, bad):
    for size, dtype in product((1, 5, 5000), (torch.float32, torch.bfloat16, torch.float64)):
        sick = draw(size, dtype=dtype)
        sick[size // 2] = bad
        moments = backend.measure([draw(size, dtype=dtype), sick])
        assert moments.squares.isfinite().tolist() == [True, False], f"{size=}, {dtype=}"


@pytest.mark.parametrize("mean", MEANS)
def test_apply(backend, mean):
    for size, scale, eps in product(SIZES, SCALES, (1e-10, 100.0)):
        case, gradient = f"{size=}, {scale=}, {eps=}", draw(size, mean, scale)
        exact, expected = gradient.double(), znorm_by_numpy(gradient, eps * scale)
        factor = 1 / (exact.std(correction=0) + eps * scale)
        backend.apply_([gradient], exact.mean().view(1), factor.view(1))
        assert relative_error(gradient, expected) < (1e-6 if mean <= 10 else 1e-4), case


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_apply_rounds_half_precision_once(backend, dtype):
    for size, mean in product(SIZES, (0.0, 10.0)):
        gradient = draw(size, mean, 0.01, dtype)
        exact = gradient.double()
        expected = (exact - exact.mean()) / exact.std(correction=0)
        backend.apply_([gradient], exact.mean().view(1), 1 / exact.std(correction=0).view(1))
        spacing = torch.finfo(dtype).eps * 2.0 ** expected.abs().clamp(min=1e-3).log2().floor()
        assert ((gradient.double() - expected).abs() <= spacing).all(), f"{size=}, {mean=}"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_apply_keeps_strides(backend, layout):
    for shape in ((3, 4, 5, 6), (40, 30, 5, 5)):
        gradient = LAYOUTS[layout](draw(math.prod(shape)).view(shape))
        expected, stride, address = (gradient.double().numpy() - 0.5) * 3, gradient.stride(), gradient.data_ptr()
        backend.apply_([gradient], tensor(0.5), tensor(3))
        assert (gradient.stride(), gradient.data_ptr()) == (stride, address), shape
        assert relative_error(gradient, expected) < 1e-6, shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_factor_of_nan_leaves_every_bit(backend, dtype):
    """Beside gradients that are edited, and among them an empty one; a NaN may become another."""
    values = torch.tensor([0.0, -0.0, 1e-45, math.inf, -math.inf, math.nan, 3.0], dtype=dtype)
    left, edited, zeroed = values.repeat(900), torch.full((5,), 3.0, dtype=dtype), torch.full((5,), 0.1, dtype=dtype)
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    before = left.clone()
    gradients = [left, edited, torch.empty(0, dtype=dtype), zeroed]
    backend.apply_(gradients, tensor(1, 1, 0, 0.1), tensor(math.nan, 0.5, 1, 0))
    assert torch.equal(left.isnan(), before.isnan())
    assert torch.equal(left.view(bits)[~left.isnan()], before.view(bits)[~before.isnan()])
    assert edited.tolist() == [1] * 5
    assert zeroed.tolist() == [0] * 5


def test_the_parts_make_the_whole(backend):
    """Chan's combination of the moments of pieces, one of them empty, as of shards."""
    whole = draw(30_000, 3.0, 1e-3)
    expected = znorm_by_numpy(whole, eps=1e-4)
    pieces = list(whole.split([0, 4_000, 26_000]))
    parts = backend.measure(pieces)
    count = parts.count.sum()
    mean = (parts.count * parts.mean).sum() / count
    squares = (parts.squares + parts.count * (parts.mean - mean).square()).sum()
    moments = type(parts)(count.view(1), mean.view(1), squares.view(1))
    mean, factor, statistics = compute_edit(moments, eps=1e-4)
    backend.apply_(pieces, mean.expand(3), factor.expand(3))
    assert relative_error(whole, expected) < 1e-6
    assert statistics.flatten().tolist() == pytest.approx([3e-3, 1e-3, 0.3162], rel=0.02)


def test_pairs_where_there_is_no_float64(without_float64):
    for size, mean, scale in product(SIZES, (0.0, 10.0, 1000.0), (1e-15, 1.0, 1e12)):
        case, gradient = f"{size=}, {mean=}, {scale=}", draw(size, mean, scale)
        exact, expected = gradient.double(), znorm_by_numpy(gradient, 1e-10 * scale)
        moments = generic.measure([gradient])
        assert all(pair.dtype == torch.float32 and pair.shape == (2, 1) for pair in vars(moments).values()), case
        count, found_mean, squares = [pair.double().sum() for pair in vars(moments).values()]
        assert count == size, case
        assert found_mean == pytest.approx(exact.mean().item(), rel=1e-9, abs=1e-5 * scale), case
        assert squares == pytest.approx(size * exact.var(correction=0).item(), rel=1e-5), case
        factor = 1 / (squares / count).sqrt()
        factor = torch.stack([factor.float(), (factor - factor.float()).float()]).view(2, 1)
        generic.apply_([gradient], moments.mean, factor)
        assert relative_error(gradient, expected) < 1e-5 * (1 if mean <= 10 else 10), case


def test_a_count_that_float32_does_not_hold(without_float64):
    count = generic.measure([torch.zeros((1 << 24) + 1, dtype=torch.bfloat16)]).count
    assert count.double().sum() == (1 << 24) + 1


@pytest.mark.parametrize("backend", [reference, generic], ids=["reference", "generic"])
def test_nothing_waits_for_the_device(backend):
    """Tensors without values: reading one is an error."""
    gradients = [torch.empty(shape, device="meta") for shape in [(), (0,), (100, 100)]]
    moments = backend.measure(gradients)
    mean, factor, statistics = compute_edit(moments, 1e-10, torch.empty((), device="meta"))
    backend.apply_(gradients, mean, factor)
    assert statistics.shape == (3, 3)
