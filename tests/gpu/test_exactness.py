"""Results on a GPU against 80-bit arithmetic and the float64 reference."""

import numpy as np
import pytest
import torch

from lightning_znorm import centralize_, znorm_
from lightning_znorm.backends import describing, reference
from tests import distributions
from tests.gpu.gradients import draw
from tests.helpers import centralize_by_numpy, parameter, relative_error, znorm_by_numpy

BOUNDS = {torch.float32: 1e-6, torch.bfloat16: 3e-3}


@pytest.mark.parametrize("size", [2, 3, 17, 1000, 4095, 4096])
def test_one_tile(backend, size):
    (gradient,) = draw(size)
    exact = gradient.double()
    expected = znorm_by_numpy(exact.cpu())
    stats = backend.znorm_([gradient], 1e-10)
    assert relative_error(gradient.cpu(), expected) < 1e-6
    torch.testing.assert_close(stats[:2, 0], torch.stack([exact.mean(), exact.std(correction=0)]), rtol=1e-5, atol=0)


def test_a_list(backend):
    sizes = (1, 7, 4096, 4097, 1_000_003, 12_345_678, 64, 3_000_000)
    gradients = draw(*sizes)
    expected = [gradient.clone() for gradient in gradients]
    stats = backend.znorm_(gradients, 1e-10)
    exact = reference.znorm_(expected, 1e-10)
    torch.testing.assert_close(stats, exact, rtol=1e-5, atol=1e-6)
    for gradient, each in zip(gradients, expected, strict=True):
        assert (gradient - each).norm() < 1e-6 * each.norm()


@pytest.mark.parametrize("name", distributions.DISTRIBUTIONS)
def test_distributions(backend, name):
    """Denormal numbers and those near the largest one included."""
    for size in (100, 4097, 50_000, 3_000_001):
        gradient, eps = distributions.draw(name, size)
        expected, moved = znorm_by_numpy(gradient, eps), gradient.cuda()
        stats = backend.znorm_([moved], eps)
        assert stats.isfinite().all()
        assert relative_error(moved.cpu(), expected) < 1e-6, size


def test_centralization(backend):
    gradient = draw(64 * 300, mean=10.0)[0].view(64, 300)
    expected = centralize_by_numpy(gradient.cpu())
    centralize_(parameter(gradient))
    assert relative_error(gradient.cpu(), expected) < 1e-6


@pytest.mark.parametrize("dtype", BOUNDS)
def test_views_into_a_bucket_of_any_alignment(backend, dtype):
    for shift in range(9):
        (bucket,) = draw(300_000, dtype=dtype)
        view = bucket[shift : shift + 200_001]
        before, expected = bucket.clone(), znorm_by_numpy(view.cpu())
        znorm_(parameter(view))
        assert relative_error(view.cpu(), expected) < BOUNDS[dtype]
        assert torch.equal(bucket[:shift], before[:shift])
        assert torch.equal(bucket[shift + 200_001 :], before[shift + 200_001 :])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_to_the_nearest(backend, dtype):
    (gradient,) = draw(1_000_000, dtype=dtype)
    exact = torch.from_numpy(znorm_by_numpy(gradient.cpu()).astype(np.float64))
    backend.znorm_([gradient], 1e-10)
    nearest = exact.to(dtype)
    found = gradient.cpu()
    # float32 arithmetic may be on the other side of the middle between two numbers
    assert (found != nearest).double().mean() < 2e-3
    middle = (found.double() + nearest.double()) / 2
    assert ((exact - middle).abs() <= 1e-5 * (1 + exact.abs()))[found != nearest].all()


@pytest.mark.parametrize("largest", [3e38, -3e38])
def test_deviations_beyond_the_largest_number(backend, largest):
    gradient = torch.full((5000,), largest)
    gradient[::7] = -largest
    expected, moved = znorm_by_numpy(gradient), gradient.cuda()
    backend.znorm_([moved], 1e-10)
    assert relative_error(moved.cpu(), expected) < 1e-6


def test_more_than_two_to_the_31_elements():
    from lightning_znorm.backends import triton

    gradient = torch.empty(2**31 + 4099, device="cuda", dtype=torch.bfloat16)
    for chunk in gradient.split(2**28):
        chunk.normal_(0.5, 2.0)
    mean, std, _ = triton.znorm_([gradient], 1e-10)[:, 0].tolist()
    assert mean == pytest.approx(0.5, abs=1e-2)
    assert std == pytest.approx(2.0, rel=1e-2)
    for chunk in (gradient[:1000], gradient[-1000:]):
        assert chunk.float().std() == pytest.approx(1.0, rel=0.2)
    sums = [(chunk.double().sum().item(), chunk.double().square().sum().item()) for chunk in gradient.split(2**28)]
    assert abs(sum(total for total, _ in sums)) / len(gradient) < 1e-3
    assert sum(squares for _, squares in sums) / len(gradient) == pytest.approx(1.0, rel=1e-3)


def test_statistics_for_the_monitor(backend):
    firsts, seconds = draw(5, 4097, 1_000_000), draw(5, 4097, 1_000_000, mean=0.5)
    values = describing.compare_gradients(firsts, seconds, 0.1)
    torch.testing.assert_close(values, describing.compare_exactly(firsts, seconds, 0.1), rtol=1e-5, atol=1e-6)
