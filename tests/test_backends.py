"""Every backend against 80-bit arithmetic: distributions, sizes, magnitudes, dtypes, strides, and what is special."""

import math
import warnings
from itertools import product

import numpy as np
import pytest
import torch

from lightning_znorm.backends import _workspace, cpu, generic, reference, triton
from tests import distributions
from tests.helpers import relative_error, znorm_by_numpy


def by_triton(gradients, eps, grad_scale=None, center=True):
    """On a GPU where there is one, in Triton's interpreter elsewhere."""
    if not torch.cuda.is_available():
        return triton.znorm_(gradients, eps, grad_scale, center)
    moved = [torch.empty_strided(g.shape, g.stride(), dtype=g.dtype, device="cuda").copy_(g) for g in gradients]
    stats = triton.znorm_(moved, eps, None if grad_scale is None else grad_scale.cuda(), center)
    for gradient, result in zip(gradients, moved, strict=True):
        gradient.copy_(result)
    return stats.cpu()


BACKENDS = {
    "reference": reference.znorm_,
    "cpu": cpu.znorm_,
    "generic": generic.znorm_,
    "float32 alone": generic.znorm_,
    "triton": by_triton,
}
# around what the backends treat differently: rows of a matrix, one tile, several, widths that do not divide
SIZES = [2, 3, 17, 1000, 4096, 4097, 8192, 8193, 36_864, 100_003, 1_000_003]
SIZES_IN_THE_INTERPRETER = [2, 3, 1000, 4096, 4097, 36_864]  # a part of a tile, one, several
MEANS = [0.0, 1.0, 10.0, 1000.0]  # in units of the standard deviation
SCALES = [1e-30, 1e-8, 1.0, 1e36]
LAYOUTS = {
    "contiguous": lambda g: g,
    "channels_last": lambda g: g.to(memory_format=torch.channels_last),
    "transposed": lambda g: g.transpose(0, 1).contiguous().transpose(0, 1),
    "in a bucket": lambda g: torch.cat([torch.ones(3), g.flatten(), torch.ones(5)])[3:-5].view(g.shape),
    "every other": lambda g: g.repeat_interleave(2, dim=3)[..., ::2],
    "one column": lambda g: torch.stack([g, g], dim=-1)[..., 0],
}


# Triton's interpreter is slow: but for one short test, it is left to `make test-all`
PARAMS = [
    pytest.param(name, marks=[] if name != "triton" or torch.cuda.is_available() else [pytest.mark.long])
    for name in BACKENDS
]


@pytest.fixture(params=PARAMS, name="znorm_")
def backend(request, monkeypatch):
    if request.param == "float32 alone":
        monkeypatch.setattr(generic, "widest_dtype", lambda device: torch.float32)
    return BACKENDS[request.param]


def draw(size, mean=0.0, scale=1.0, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed + size)
    return ((torch.randn(size, generator=generator, dtype=torch.float64) + mean) * scale).to(dtype)


def is_interpreted(znorm_):
    return znorm_ is by_triton and not torch.cuda.is_available()


def sizes_for(znorm_):
    return SIZES_IN_THE_INTERPRETER if is_interpreted(znorm_) else SIZES


def bound(mean):
    return 1e-6 if mean <= 10 else 1e-4


def most_ulps(znorm_):
    """Triton's interpreter cuts off the digits of a bfloat16, which a GPU rounds."""
    return 1.01 if is_interpreted(znorm_) else 1


def ulps(result, expected):
    """The largest difference in units of the last place, of the smallest number that is no denormal at least."""
    spacing = torch.finfo(result.dtype).eps * 2.0 ** torch.floor(torch.log2(expected.abs().clamp(min=1e-3)))
    return ((result.double() - expected).abs() / spacing).max().item()


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
