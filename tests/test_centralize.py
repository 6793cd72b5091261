"""`centralize_` against NumPy and against another package."""

import math
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pytorch_optimizer.optimizer.gradient_centralization import centralize_gradient
from torch import nn

from lightning_znorm import centralize_
from lightning_znorm.backends import cpu_centralize, generic, reference
from tests import distributions
from tests.helpers import centralize_by_numpy, parameter, relative_error, small_network

SHAPES = [(7,), (5, 6), (4, 3, 5), (8, 3, 3, 3), (2, 3, 4, 5, 2), (1, 9)]

gradients = hnp.arrays(
    "float64",
    hnp.array_shapes(min_dims=1, max_dims=4, max_side=8),
    elements=st.floats(-1e3, 1e3, allow_subnormal=False),
).map(torch.from_numpy)
everything = settings(max_examples=50, deadline=None)


def centralized(gradient):
    result = gradient.clone()
    centralize_(parameter(result))
    return result


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_pytorch_optimizer(shape):
    gradient = torch.randn(shape) + 2
    expected = gradient.clone()
    centralize_gradient(expected)
    torch.testing.assert_close(centralized(gradient), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_with_numpy(shape, scale, dtype):
    gradient = (torch.randn(shape, dtype=torch.float64) + 10).mul(scale).to(dtype)
    expected = centralize_by_numpy(gradient)
    assert relative_error(centralized(gradient), expected) < (1e-6 if dtype == torch.float32 else 1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_the_float64_result_rounded_once(dtype):
    gradient = (torch.randn(40, 50) * 0.1 + 0.05).to(dtype)
    expected = torch.from_numpy(centralize_by_numpy(gradient).astype(np.float64))
    spacing = torch.finfo(dtype).eps * 2.0 ** torch.floor(torch.log2(expected.abs()))
    assert ((centralized(gradient).double() - expected).abs() <= spacing).all()


@everything
@given(gradients)
def test_each_row_has_zero_mean(gradient):
    result = centralized(gradient)
    if gradient.ndim > 1 and gradient[0].numel() > 1:
        assert result.flatten(1).mean(dim=1).abs().max() < 1e-12 * (1 + gradient.abs().max())
    else:
        assert torch.equal(result, gradient)


@everything
@given(gradients)
def test_idempotent(gradient):
    once = centralized(gradient)
    torch.testing.assert_close(centralized(once), once, rtol=1e-9, atol=1e-10)


@everything
@given(gradients)
def test_a_projection(gradient):
    """The norm never grows, and the inner product with the gradient is the squared norm of the result."""
    result = centralized(gradient)
    assert result.norm() <= gradient.norm() * (1 + 1e-12)
    torch.testing.assert_close((gradient * result).sum(), result.square().sum(), rtol=1e-9, atol=1e-6)


def test_statistics_are_those_of_the_whole_gradient_before():
    raw = [torch.randn(4, 5) + 3, torch.randn(7), torch.randn(3, 2, 2, 2) * 10]
    holders = [parameter(gradient.clone()) for gradient in raw]
    stats = centralize_(holders)
    assert stats.by_device[torch.device("cpu")].index == (0, 1, 2)
    for i, (before, holder) in enumerate(zip(raw, holders, strict=True)):
        assert stats.mean[i] == pytest.approx(before.double().mean().item())
        assert stats.std[i] == pytest.approx(before.double().std(correction=0).item())
        cosine = nn.functional.cosine_similarity(before.double().flatten(), holder.grad.double().flatten(), dim=0)
        assert stats.cosine[i] == pytest.approx(cosine.item(), abs=1e-6)


@pytest.mark.parametrize(("value", "cosine"), [(0.0, 1), (0.1, 0), (-3e-7, 0), (1e36, 0)])
def test_constant_rows_become_exactly_zero(value, cosine):
    gradient = torch.full((3, 101), value)
    stats = centralize_(parameter(gradient))
    assert torch.count_nonzero(gradient) == 0
    assert stats.cosine.item() == cosine


def test_rows_of_one_element_stay():
    """Centralized, they would be zero in every step, and the parameter would never train."""
    gradients = [torch.randn(5, 1), torch.randn(4, 1, 1, 1), torch.randn(6), torch.tensor(2.0)]
    before = [gradient.clone() for gradient in gradients]
    stats = centralize_([parameter(gradient) for gradient in gradients])
    assert all(torch.equal(*pair) for pair in zip(gradients, before, strict=True))
    assert stats.cosine.tolist() == [1] * 4


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_nonfinite_is_neither_spread_nor_hidden(bad):
    sick, healthy = torch.tensor([[1.0, bad], [3.0, 5.0]]), torch.tensor([[1.0, 3.0]])
    stats = centralize_([parameter(sick), parameter(healthy)])
    torch.testing.assert_close(sick, torch.tensor([[1.0, bad], [3.0, 5.0]]), equal_nan=True, rtol=0, atol=0)
    assert healthy.tolist() == [[-1, 1]]
    assert math.isnan(stats.std[0])
    assert stats.cosine[0] == 1


def test_strides_and_storage_are_kept():
    bucket = torch.randn(30)
    before = bucket.clone()
    for gradient in (
        torch.randn(3, 4, 5, 5).to(memory_format=torch.channels_last),
        torch.randn(6, 8).t(),
        bucket[10:20].view(2, 5),
    ):
        expected, stride, address = centralize_by_numpy(gradient), gradient.stride(), gradient.data_ptr()
        holder = parameter(gradient)
        centralize_(holder)
        assert holder.grad is gradient
        assert (gradient.stride(), gradient.data_ptr()) == (stride, address)
        assert relative_error(gradient, expected) < 1e-7
    assert torch.equal(bucket[:10], before[:10])
    assert torch.equal(bucket[20:], before[20:])


@pytest.mark.parametrize("scale", [2.0**16, 1000.0])
def test_a_scaled_gradient_stays_scaled_and_the_statistics_are_without_the_scale(scale):
    raw = torch.randn(20, 30, dtype=torch.float64) * 0.01 + 0.02
    holder = parameter((raw * scale).float())
    stats = centralize_(holder, grad_scale=torch.tensor([scale]))
    np.testing.assert_allclose(holder.grad.double() / scale, centralize_by_numpy(raw).astype(float), atol=1e-8)
    assert stats.mean.item() == pytest.approx(raw.mean().item(), rel=1e-6)
    assert stats.std.item() == pytest.approx(raw.std(correction=0).item(), rel=1e-6)


def test_missing_empty_and_repeated_parameters():
    weight = parameter(torch.tensor([[1.0, 3.0]]))
    stats = centralize_([weight, parameter(None, shape=(2, 2)), parameter(torch.empty(0, 4)), weight])
    assert len(stats) == 1
    assert weight.grad.tolist() == [[-1, 1]]
    assert len(centralize_(small_network().parameters())) == 0
    with pytest.warns(UserWarning, match="`parameters` is empty") as caught:
        centralize_([])
    assert caught[0].filename == __file__


def test_refuses_what_znorm_refuses():
    embedding = nn.Embedding(10, 3, sparse=True)
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(TypeError, match=r"parameters\[0\].*sparse"):
        centralize_(embedding.parameters())
    with pytest.raises(TypeError, match="complex"):
        centralize_(parameter(torch.zeros(2, 3, dtype=torch.complex64)))
    with pytest.raises(ValueError, match="share memory"):
        centralize_(parameter(torch.ones(1, 1).expand(3, 4)))
    with pytest.raises(TypeError, match="float16 and still multiplied"):
        centralize_(parameter(torch.ones(2, 3, dtype=torch.float16)), grad_scale=torch.tensor(4.0))


def test_the_reference_takes_a_detour_from_devices_without_float64(monkeypatch):
    monkeypatch.setattr(reference, "widest_dtype", lambda device: torch.float32)
    gradient = torch.randn(10, 20) + 2
    expected = centralize_by_numpy(gradient)
    reference.centralize_([gradient])
    assert relative_error(gradient, expected) < 1e-7


def lay_out(gradient, layout):
    if layout == "transposed":
        return gradient.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "channels_last" and gradient.ndim == 4:
        return gradient.to(memory_format=torch.channels_last)
    return gradient.repeat_interleave(2, dim=-1)[..., ::2] if layout == "every other" else gradient


@pytest.mark.parametrize("mean", [0.0, 1.0, 10.0, 1000.0])
@pytest.mark.parametrize("backend", ["cpu", "generic", "float32 alone"])
def test_backends_agree_with_the_reference(mean, backend, monkeypatch):
    if backend == "float32 alone":
        monkeypatch.setattr(generic, "widest_dtype", lambda device: torch.float32)
    ours = cpu_centralize if backend == "cpu" else generic
    shapes = [(64, 300), (1, 5000), (300, 2), (3, 7, 3, 3)]
    layouts = ["contiguous", "transposed", "channels_last", "every other"]
    for scale, shape, layout in product([1e-30, 1.0, 1e34], shapes, layouts):
        case = f"{scale=}, {shape=}, {layout=}"
        gradient = (torch.randn(shape, dtype=torch.float64) + mean).mul(scale).float()
        gradient[-1] = 0.3 * scale  # a constant row
        gradient = lay_out(gradient, layout)
        exact = gradient.double()
        expected = reference.centralize_([exact])
        stats = ours.centralize_([gradient]).double()
        assert (gradient.double() - exact).norm() <= (1e-6 if mean <= 10 else 1e-4) * exact.norm(), case
        assert torch.count_nonzero(gradient[-1]) == 0, case
        bounds = {"rtol": 1e-4 if mean == 1000 else 1e-6, "atol": 1e-6 * expected[1].item()}
        torch.testing.assert_close(stats, expected, **bounds, msg=lambda text, case=case: f"{case}: {text}")


def centralize_with_others(gradients, grad_scale=None):
    others = [torch.randn_like(gradient) for gradient in gradients]
    return cpu_centralize.centralize_([*gradients, *others], grad_scale)[:, : len(gradients)]


@pytest.fixture(params=["reference", "cpu", "cpu, several", "generic", "float32 alone"], name="backend")
def backend_of_centralization(request, monkeypatch):
    if request.param == "cpu, several":
        return SimpleNamespace(centralize_=centralize_with_others)
    if request.param == "float32 alone":
        monkeypatch.setattr(generic, "widest_dtype", lambda device: torch.float32)
    return {"reference": reference, "cpu": cpu_centralize}.get(request.param, generic)


@pytest.mark.parametrize("name", distributions.DISTRIBUTIONS)
def test_distributions(backend, name):
    largest = torch.finfo(torch.float32).max
    for shape in (distributions.LAYER, (300, 2), (64, 300), (7, 3, 3, 3), (1, 50_000), (2, 50_001)):
        flat, _ = distributions.draw(name, math.prod(shape))
        gradient = flat.view(shape)
        before, exact = gradient.double().numpy().astype(np.longdouble), centralize_by_numpy(gradient)
        expected = np.clip(exact, -largest, largest)  # float32 holds no deviation beyond
        mean, std, cosine = backend.centralize_([gradient])[:, 0].tolist()
        difference = gradient.double().numpy().astype(np.longdouble) - expected
        norm, unit = np.sqrt(np.square(expected).sum()), np.longdouble(2) ** -149  # the distance between denormals
        assert np.sqrt(np.square(difference).sum()) <= 1e-6 * norm + unit * np.sqrt(before.size), shape
        assert abs(mean - before.mean()) <= 1e-6 * before.std() + unit
        assert abs(std - before.std()) <= 1e-6 * before.std() + unit
        assert cosine == pytest.approx(float(np.sqrt(np.square(exact).sum() / np.square(before).sum())), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_no_finite_gradient_becomes_infinite(backend, dtype):
    """The deviations of the last two rows are beyond the largest number, to which they are rounded."""
    largest = torch.finfo(dtype).max
    gradient = torch.tensor([[2.0, 1.0, 0.0], [0.9, -0.9, -0.9], [-1.0, 1.0, 1.0]], dtype=torch.float64)
    gradient[1:] *= largest
    gradient = gradient.to(dtype)
    stats = backend.centralize_([gradient])
    assert stats.isfinite().all()
    expected = torch.tensor([[1.0, 0.0, -1.0], [largest, -0.6 * largest, -0.6 * largest]], dtype=torch.float64)
    expected = torch.cat([expected, torch.tensor([[-1.0, 2 / 3, 2 / 3]], dtype=torch.float64) * largest])
    torch.testing.assert_close(gradient, expected.to(dtype), atol=0, rtol=2 * torch.finfo(dtype).eps)
