"""How `generic` packs gradients: few calls, little memory, and each gradient as if it were alone."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models import resnet50

from lightning_znorm.backends import _tiles, generic, reference
from lightning_znorm.backends.moments import compute_edit
from tests.helpers import relative_error, znorm_by_numpy

VIEWS = {"view", "select", "slice", "as_strided", "unsqueeze", "squeeze", "expand", "permute", "detach", "alias"}
VIEWS |= {"split", "split_with_sizes", "unbind", "transpose"}


class Counting(TorchDispatchMode):
    """The operations on values, and the bytes of the largest tensor that none of the arguments is."""

    def __init__(self):
        super().__init__()
        self.calls, self.largest = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if name in VIEWS:
            return result
        if not name.startswith("empty"):
            self.calls.append(name)
        given = [*args, *(kwargs or {}).values()]
        for tensor in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(tensor, torch.Tensor) and not any(tensor is each for each in given):
                self.largest = max(self.largest, tensor.numel() * tensor.element_size())
        return result


@pytest.fixture(params=["float64", "float32 alone"], name="widest", autouse=True)
def widest_dtype(request, monkeypatch):
    if request.param == "float32 alone":
        monkeypatch.setattr(generic, "widest_dtype", lambda device: torch.float32)
    return request.param


@pytest.fixture(name="in_small_buckets")
def small_buckets(monkeypatch):
    monkeypatch.setattr(_tiles, "_BUCKET", 4096)


def draw(size, mean=0.0, scale=1.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(math.prod(size) if isinstance(size, tuple) else size)
    return ((torch.randn(size, generator=generator, dtype=torch.float64) + mean) * scale).to(dtype)


def test_few_calls_and_one_bucket_of_memory(widest):
    with torch.device("meta"):
        gradients = [torch.empty_like(parameter) for parameter in resnet50().parameters()]
    gradients = [gradient.detach() for gradient in gradients]
    assert len(gradients) == 161
    calls = {}
    for name, function in {
        "znorm_": lambda: generic.znorm_(gradients, 1e-10),
        "measure": lambda: generic.measure(gradients),
        "centralize_": lambda: generic.centralize_(gradients),
    }.items():
        function()  # makes the plan
        with Counting() as counting:
            function()
        calls[name] = len(counting.calls)
        assert counting.largest <= 4 * _tiles._BUCKET, name
    limits = (60, 40, 100) if widest == "float64" else (110, 90, 170)
    assert all(found <= limit for found, limit in zip(calls.values(), limits, strict=True)), calls


def test_gradients_across_buckets(in_small_buckets):
    """The second begins in the first bucket and ends in the sixth; partial tiles are in the last."""
    sizes = [700, 20_000, 1, 4096, 4097, 9000, 30]
    gradients = [draw(size, 0.5) for size in sizes]
    expected = [znorm_by_numpy(gradient) for gradient in gradients]
    moments = generic.measure(gradients)
    mean = moments.mean if moments.mean.ndim == 1 else moments.mean.double().sum(dim=0)
    torch.testing.assert_close(mean, reference.measure(gradients).mean, rtol=1e-6, atol=1e-6)
    generic.znorm_(gradients, 1e-10)
    for gradient, exact in zip(gradients, expected, strict=True):
        if len(gradient) > 1:
            assert relative_error(gradient, exact) < 5e-7, len(gradient)


@pytest.mark.parametrize("shape", [(3, 9001), (40, 1500), (700, 9), (9, 64), (2, 3, 1024), (5000, 2)], ids=str)
def test_rows_across_buckets(in_small_buckets, shape):
    gradients = [draw(shape, 3.0), draw((8, 3), dtype=torch.bfloat16), draw(shape).transpose(0, 1), draw((5, 1))]
    exact = [gradient.double() for gradient in gradients]
    expected = reference.centralize_(exact)
    torch.testing.assert_close(generic.centralize_(gradients).double(), expected, rtol=1e-6, atol=1e-6)
    for gradient, result in zip(gradients, exact, strict=True):
        bound = 1e-6 if gradient.dtype == torch.float32 else 4e-3
        assert (gradient.double() - result).norm() <= bound * result.norm(), gradient.shape


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_a_sick_gradient_between_healthy_ones(bad):
    """In one bucket: nothing of it goes to the others, be they zero, constant or full of numbers."""
    sizes = [5, 2000, 1024, 3, 1]
    healthy = [draw(size, 0.3) for size in sizes] + [torch.zeros(7), torch.full((2000,), 0.1)]
    sick = [draw(size) for size in sizes]
    for gradient in sick:
        gradient[len(gradient) // 2] = bad
    before, alone = [gradient.clone() for gradient in sick], [gradient.clone() for gradient in healthy]
    mixed = [gradient for pair in zip(sick, healthy[:5], strict=True) for gradient in pair] + healthy[5:]
    generic.znorm_(mixed, 1e-10)
    generic.znorm_(alone, 1e-10)
    for gradient, other in zip(healthy, alone, strict=True):
        assert torch.equal(gradient, other)
    for gradient, other in zip(sick, before, strict=True):
        torch.testing.assert_close(gradient, other, equal_nan=True, rtol=0, atol=0)


def test_many_tiny_gradients(widest):
    gradients = [draw(1 + n % 9, 2.0) for n in range(3000)]
    exact = [gradient.double() for gradient in gradients]
    expected = reference.znorm_(exact, 1e-10)
    generic.znorm_([gradient.clone() for gradient in gradients], 1e-10)  # makes the plan
    with Counting() as counting:
        statistics = generic.znorm_(gradients, 1e-10)
    assert counting.largest < 1 << 20
    assert len(counting.calls) <= (60 if widest == "float64" else 110)
    torch.testing.assert_close(statistics.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.cat(gradients).double(), torch.cat(exact), rtol=1e-5, atol=1e-6)


def test_all_dtypes_in_a_list(widest):
    """Whatever their order, the results are in that order."""
    dtypes = [torch.float32, torch.bfloat16, torch.float16, *([torch.float64] if widest == "float64" else [])]
    gradients = [draw(size, 1.0, dtype=dtype) for size in (3, 1500, 40) for dtype in dtypes]
    exact = [gradient.to(torch.float64, copy=True) for gradient in gradients]
    moments, expected = generic.measure(gradients), reference.measure(gradients)
    for found, right in zip(vars(moments).values(), vars(expected).values(), strict=True):
        total = found if found.ndim == 1 else found.double().sum(dim=0)
        torch.testing.assert_close(total, right, rtol=2e-6, atol=1e-6)
    applied = [gradient.clone() for gradient in gradients]
    if widest == "float64":
        mean, factor, _ = compute_edit(moments, 1e-10)
        generic.apply_(applied, mean, factor)
    statistics = generic.znorm_(gradients, 1e-10)
    torch.testing.assert_close(statistics.double(), reference.znorm_(exact, 1e-10), rtol=1e-6, atol=1e-6)
    for position, (gradient, result) in enumerate(zip(gradients, exact, strict=True)):
        bound = torch.finfo(gradient.dtype).eps * (4 if gradient.dtype != torch.float64 else 100)
        assert (gradient.double() - result).norm() <= bound * result.norm(), position
        assert widest != "float64" or torch.equal(applied[position], gradient), position
