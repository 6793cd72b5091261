"""Statistics of gradients before and after a transform, of every backend, against NumPy and the float64 reference."""

import math

import numpy as np
import pytest
import torch

from lightning_znorm.backends import choice, describing
from lightning_znorm.backends.describing import compare_exactly, compare_gradients
from tests import distributions

EXACT, FLOAT32 = 1e-9, 3e-6
LONG = [] if torch.cuda.is_available() else [pytest.mark.long]  # Triton's interpreter is slow


@pytest.fixture(params=["cpu", "generic", "no float64", pytest.param("triton", marks=LONG)], autouse=True)
def backend(request, monkeypatch):
    backends = {"cpu": choice.CPU, "triton": choice.load_triton()}
    monkeypatch.setattr(describing, "choose", lambda gradients: backends.get(request.param, choice.GENERIC))
    if request.param == "no float64":
        monkeypatch.setattr(describing, "widest_dtype", lambda device: torch.float32)
    return request.param


@pytest.fixture(params=[compare_exactly, compare_gradients], name="compare")
def function(request):
    return request.param


def draw(*size, mean=0.5, scale=1.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(math.prod(size))
    return ((torch.randn(size, generator=generator, dtype=torch.float64) + mean) * scale).to(dtype)


def describe_by_numpy(gradient, near_zero, grad_scale=1.0):
    exact = gradient.double().numpy().astype(np.longdouble) / grad_scale
    return [np.sqrt(np.square(exact).sum()), exact.mean(), exact.std(), (np.abs(exact) <= near_zero).mean()]


def compare_by_numpy(first, second, near_zero, *scales):
    one, other = (gradient.double().numpy().ravel().astype(np.longdouble) for gradient in (first, second))
    cosine = (one / np.sqrt(one @ one)) @ (other / np.sqrt(other @ other))
    scales = scales or (1.0, 1.0)
    described = [describe_by_numpy(each, near_zero, by) for each, by in zip((first, second), scales, strict=True)]
    return [*map(float, [*described[0], *described[1], cosine])]


def tolerance(compare, dtype):
    return EXACT if compare is compare_exactly or dtype == torch.float64 else FLOAT32


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_scales(compare, scale, dtype):
    before, after = draw(40, 50, scale=scale, dtype=dtype), draw(50, 40, mean=0.2).to(dtype).view(40, 50)
    before[0] = 0
    values = compare([before], [after], 0.1 * scale)[:, 0]
    assert values.tolist() == pytest.approx(
        compare_by_numpy(before, after, 0.1 * scale), rel=tolerance(compare, dtype), abs=1e-12
    )


def test_gradients_that_a_scaler_has_multiplied(compare):
    before, after = draw(40, 50) * 24, draw(40, 50, mean=0.0)
    plain = compare([before], [after], 0.1)[:, 0]
    values = compare([before], [after], 0.1 / 24, torch.tensor(24.0), torch.tensor([1.0]))[:, 0]
    assert (values[:3] * 24).tolist() == pytest.approx(plain[:3].tolist(), rel=1e-6)
    assert values[[3, 8]].tolist() == plain[[3, 8]].tolist()
    assert values[7] == (after.abs() <= 0.1 / 24).double().mean()


def test_special_gradients(compare):
    special = [torch.zeros(3), torch.tensor(2.0), torch.tensor([1.0, torch.inf]), torch.full((4,), 0.1)]
    others = [torch.zeros(3), torch.tensor(-3e38), torch.ones(2), torch.zeros(4)]
    norm, mean, std, near_zero, *received, cosine = compare(special, others, 0.0)
    assert norm[[0, 1, 3]].tolist() == pytest.approx([0, 2, 0.2])
    assert mean[[0, 1, 3]].tolist() == pytest.approx([0, 2, 0.1])
    assert std[[0, 1, 3]].tolist() == [0, 0, 0]
    assert near_zero[[0, 1, 3]].tolist() == [1, 0, 0]
    assert all(math.isnan(values[2]) for values in (norm, mean, std, near_zero, cosine))
    assert torch.stack(received)[:, 2].tolist() == pytest.approx([2**0.5, 1, 0, 0])
    assert cosine[[0, 1, 3]].tolist() == [1, -1, 0]


def test_gradients_that_were_removed(compare):
    values = compare([torch.ones(3), torch.zeros(3)], [torch.full((3,), torch.nan)] * 2, 0.0)
    assert values[:4].T.tolist() == pytest.approx(torch.tensor([[3**0.5, 1, 0, 0], [0, 0, 0, 1]]).numpy())
    assert values[4:].isnan().all()


@pytest.mark.parametrize("name", distributions.DISTRIBUTIONS)
def test_distributions_agree_with_the_reference(name):
    firsts = [distributions.draw(name, size)[0] for size in (2, 100, 4097, 50_000)]
    seconds = [first.flip(0) / 2 + first / 4 for first in firsts]
    near_zero = firsts[-1].abs().double().median().item() / 2
    values = compare_gradients(firsts, seconds, near_zero).double()
    exact = compare_exactly(firsts, seconds, near_zero)
    torch.testing.assert_close(values[[3, 7]], exact[[3, 7]], rtol=0, atol=1e-5)
    root = torch.tensor([len(first) for first in firsts]).sqrt()
    for norm, mean, std in ((0, 1, 2), (4, 5, 6)):
        assert ((values[norm] - exact[norm]).abs() <= FLOAT32 * exact[norm]).all()
        assert ((values[mean] - exact[mean]).abs() * root <= FLOAT32 * exact[norm]).all()
        assert ((values[std] - exact[std]).abs() * root <= FLOAT32 * exact[norm]).all()
    torch.testing.assert_close(values[8], exact[8], rtol=0, atol=FLOAT32)


def test_many_chunks_and_strides(monkeypatch):
    for name in ("_CHUNK", "_CHUNK_ON_CPU"):
        monkeypatch.setattr(describing, name, 300)
    image = draw(4, 3, 10, 9)
    firsts = [image.to(memory_format=torch.channels_last), draw(40, 60)[:, ::2], draw(7, 9).t(), draw(5)]
    seconds = [image + 1, draw(40, 30), draw(9, 7, mean=0.0).t().contiguous().t(), draw(5, mean=3.0)]
    for first, second, values in zip(firsts, seconds, compare_gradients(firsts, seconds, 0.3).T, strict=True):
        assert values.tolist() == pytest.approx(compare_by_numpy(first, second, 0.3), rel=FLOAT32, abs=1e-6)


def test_dtypes_side_by_side():
    dtypes = [torch.float64, torch.float32, torch.bfloat16, torch.float64, torch.float16]
    firsts = [draw(100 + n, dtype=dtype) for n, dtype in enumerate(dtypes)]
    seconds = [first * 2 - 1 for first in firsts]
    values = compare_gradients(firsts, seconds, 0.3)
    for first, second, column in zip(firsts, seconds, values.T, strict=True):
        assert column.tolist() == pytest.approx(compare_by_numpy(first, second, 0.3), rel=FLOAT32, abs=1e-6)


def test_nothing_is_edited_and_no_value_is_waited_for(backend):
    first, second = draw(500), draw(500, mean=0.0)
    copies = first.clone(), second.clone()
    compare_gradients([first], [second], 0.1)
    assert torch.equal(first, copies[0])
    assert torch.equal(second, copies[1])
    if backend != "generic":
        return  # on a GPU: tests/gpu
    shapes = [(), (5,), (64, 64), (8, 3, 3, 3)]
    # a meta tensor has no values, and raises where one is asked for
    gradients = [torch.empty(shape, device="meta") for shape in shapes]
    assert compare_gradients(gradients, gradients, 0.1, torch.empty((), device="meta")).shape == (9, 4)
