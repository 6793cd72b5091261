"""The Triton backend in the interpreter: its parts, its rows, and how much it compiles and launches."""

import math

import pytest
import torch

from lightning_znorm.backends import reference, triton
from lightning_znorm.backends._triton_kernels import apply_kernel, conclude_kernel, measure_kernel
from lightning_znorm.backends.moments import compute_edit
from tests.helpers import relative_error

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy in the interpreter

KERNELS = {"measure_kernel": measure_kernel, "conclude_kernel": conclude_kernel, "apply_kernel": apply_kernel}


def make_gradients(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    gradients = [
        draw(4097) + 0.3,
        draw(6, 700) + 5 * draw(6, 1),
        draw(5, 1),
        torch.full((3, 5000), 0.25),
        draw(4, 3, 2, 2).to(memory_format=torch.channels_last),
        draw(8, 6).t(),
        draw(9, 4)[:, ::2],
        draw(1),
        draw(3, 5),
    ]
    gradients[-1][1, 2] = math.inf
    return [gradient.to(dtype) for gradient in gradients]


def assert_same(found, expected, bound=1e-6):
    for number, (gradient, exact) in enumerate(zip(found, expected, strict=True)):
        if exact.isfinite().all() and exact.any():
            assert relative_error(gradient, exact.double().numpy()) <= bound, number
        else:
            assert torch.equal(gradient, exact), number


def clone(gradients):
    return [gradient.clone(memory_format=torch.preserve_format) for gradient in gradients]


@pytest.fixture
def launches(monkeypatch):
    """The names of the kernels that are launched, and the sizes of their grids."""
    found = []

    def record(name, kernel):
        class Recorder:
            def __getitem__(self, grid):
                found.append((name, *grid))
                return kernel[grid]

        monkeypatch.setattr(triton, name, Recorder())

    for name, kernel in KERNELS.items():
        record(name, kernel)
    return found


@pytest.mark.parametrize("scale", [None, torch.tensor([8.0])], ids=["unscaled", "scaled"])
@pytest.mark.parametrize("center", [True, False])
def test_znorm(center, scale):
    found, expected = make_gradients(), make_gradients()
    stats = triton.znorm_(found, 1e-6, scale, center)
    exact = reference.znorm_(expected, 1e-6, scale, center)
    assert_same(found, expected)
    torch.testing.assert_close(stats[:, :-1], exact[:, :-1], rtol=1e-6, atol=1e-7)
    assert stats[0, -1].isnan()
    assert stats[2, -1] == 1


@pytest.mark.parametrize("scale", [None, torch.tensor([8.0])], ids=["unscaled", "scaled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_rows_are_centralized(dtype, scale):
    found, expected = make_gradients(dtype), make_gradients(dtype)
    stats, exact = triton.centralize_(found, scale), reference.centralize_(expected, scale)
    assert_same(found, expected, 1e-6 if dtype == torch.float32 else 1e-3)
    torch.testing.assert_close(stats[:, :-1], exact[:, :-1], rtol=1e-6, atol=1e-7)


def test_deviations_beyond_the_largest_number():
    gradient = torch.full((2, 5000), 3e38)
    gradient[:, 0] = -3e38
    expected = gradient.clone()
    triton.centralize_([gradient])
    reference.centralize_([expected])
    assert gradient.isfinite().all()
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("center", [True, False])
def test_both_steps_make_the_whole(center):
    whole, steps = make_gradients()[:-1], make_gradients()[:-1]
    moments = triton.measure(steps)
    exact = reference.measure(steps)
    for name in ("count", "mean", "squares"):
        torch.testing.assert_close(getattr(moments, name), getattr(exact, name), rtol=1e-6, atol=1e-6)
    triton.apply_(steps, *compute_edit(moments, 1e-6, center=center)[:2])
    triton.znorm_(whole, 1e-6, center=center)
    for one, other in zip(steps, whole, strict=True):
        torch.testing.assert_close(one, other)


def test_empty_gradients_are_measured():
    moments = triton.measure([torch.empty(0), torch.tensor([1.0, 2.0, 3.0, 6.0]), torch.empty(2, 0)])
    assert moments.count.tolist() == [0, 4, 0]
    assert moments.mean.tolist() == [0, 3, 0]
    assert moments.squares.tolist() == [0, 14, 0]


def test_a_mix_of_dtypes_keeps_its_order():
    dtypes = [torch.float32, torch.float64, torch.bfloat16, torch.float32, torch.float64]
    found = [torch.randn(50).add(i).to(dtype) for i, dtype in enumerate(dtypes)]
    expected = clone(found)
    stats = triton.znorm_(found, 1e-6)
    torch.testing.assert_close(stats, reference.znorm_(expected, 1e-6), rtol=1e-5, atol=1e-6)
    edit = torch.arange(5.0).double(), torch.full((5,), 0.5, dtype=torch.float64)
    triton.apply_(found, *edit)
    reference.apply_(expected, *edit)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2 if one.dtype == torch.bfloat16 else 1e-6)


def test_three_launches(launches):
    gradients = [torch.randn(10_000), torch.randn(64, 10), torch.randn(7)]
    triton.znorm_(gradients, 1e-6)
    assert launches == [("measure_kernel", 5), ("conclude_kernel", 3), ("apply_kernel", 5)]
    launches.clear()
    triton.centralize_(gradients)
    names = [name for name, _ in launches]
    assert names == ["measure_kernel", "conclude_kernel", "conclude_kernel", "apply_kernel"]


def test_integers_are_not_specialized():
    """Otherwise a change in the list of gradients would compile a kernel in the middle of a training."""
    for kernel in KERNELS.values():
        names = kernel.arg_names
        free = {name for name in names if name.startswith("n_")}
        assert free
        assert free <= set(kernel.kwargs["do_not_specialize"])
