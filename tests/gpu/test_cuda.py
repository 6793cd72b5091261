"""What only a GPU can show; `make gpu-check` runs these where there is one."""

import copy
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from lightning_znorm import ZNorm, attach, centralize_, functional, znorm_
from lightning_znorm.backends import choice, generic, reference, triton
from tests import distributions
from tests.helpers import (
    centralize_by_numpy,
    make_module,
    make_trainer,
    relative_error,
    small_network,
    znorm_by_numpy,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU: make gpu-check")


@pytest.fixture(params=[generic, triton], ids=["generic", "triton"], name="backend")
def backend_of_cuda(request, monkeypatch):
    """Both backends in turn; the package chooses this one for CUDA while a test runs."""
    chosen = {"cpu": choice.CPU, "cuda": choice.GENERIC if request.param is generic else choice.load_triton()}
    monkeypatch.setattr(functional, "choose", lambda gradients: chosen[gradients[0].device.type])
    return request.param


def draw(*sizes, mean=0.1, dtype=torch.float32):
    generator = torch.Generator("cuda").manual_seed(sum(sizes))
    return [(torch.randn(n, device="cuda", generator=generator) + mean).to(dtype) for n in sizes]


@contextmanager
def synchronization_is_an_error():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_no_host_synchronization(backend, dtype):
    shapes = [(), (5,), (64, 64), (100, 1000), (8, 3, 3, 3)]
    parameters = [nn.Parameter(torch.zeros(shape, device="cuda", dtype=dtype)) for shape in shapes]
    parameters[-1].data = parameters[-1].data.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(parameters, lr=0.1, fused=True)
    attach(optimizer, ZNorm(min_ndim=1))
    scale = torch.ones(1, device="cuda")
    for _ in range(2):
        for p in parameters:
            p.grad = torch.randn_like(p)
        parameters[2].grad = torch.randn(64, 128, device="cuda", dtype=dtype)[:, ::2]
        with synchronization_is_an_error():
            znorm_(parameters)
            znorm_(parameters, grad_scale=scale)
            centralize_(parameters)
            centralize_(parameters, grad_scale=scale)
            optimizer.step()


def test_gradients_on_several_devices(backend):
    sizes, devices = [5, 70_000, 900, 3], ["cuda", "cpu", "cpu", "cuda"]
    gradients = [draw(size)[0].to(device) for size, device in zip(sizes, devices, strict=True)]
    expected = [znorm_by_numpy(gradient.cpu()) for gradient in gradients]
    parameters = [parameter_of(gradient) for gradient in gradients]
    stats = znorm_(parameters)
    for parameter, exact in zip(parameters, expected, strict=True):
        assert relative_error(parameter.grad.cpu(), exact) < 1e-6
    assert {device.type: found.index for device, found in stats.by_device.items()} == {"cuda": (0, 3), "cpu": (1, 2)}
    assert stats.mean.shape == (4,)


@pytest.mark.parametrize("name", distributions.DISTRIBUTIONS)
def test_distributions(backend, name):
    for size in (100, 4097, 50_000, 3_000_001):
        gradient, eps = distributions.draw(name, size)
        expected, moved = znorm_by_numpy(gradient, eps), gradient.cuda()
        stats = backend.znorm_([moved], eps)
        assert stats.isfinite().all()
        assert relative_error(moved.cpu(), expected) < 1e-6, size


def test_centralization():
    gradient = draw(64 * 300, mean=10.0)[0].view(64, 300)
    expected = centralize_by_numpy(gradient.cpu())
    centralize_(parameter_of(gradient))
    assert relative_error(gradient.cpu(), expected) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_views_into_a_bucket_of_any_alignment(backend, dtype):
    for shift in (0, 1, 2, 3):
        (bucket,) = draw(300_000, dtype=dtype)
        view = bucket[shift : shift + 200_001]
        before, expected = bucket.clone(), znorm_by_numpy(view.cpu())
        znorm_(parameter_of(view))
        assert relative_error(view.cpu(), expected) < (1e-6 if dtype == torch.float32 else 3e-3)
        assert torch.equal(bucket[:shift], before[:shift])
        assert torch.equal(bucket[shift + 200_001 :], before[shift + 200_001 :])


def parameter_of(gradient):
    holder = nn.Parameter(torch.zeros_like(gradient))
    holder.grad = gradient
    return holder


def test_the_same_bits_a_hundred_times(backend):
    """A race between programs would show as a moving result."""
    originals = draw(7, 4096, 4097, 1_000_003, 12_345_678, 64, 3_000_000)
    results = []
    for _ in range(100):
        gradients = [gradient.clone() for gradient in originals]
        stats = backend.znorm_(gradients, 1e-10)
        results.append([*gradients, stats])
        if len(results) > 1:
            assert all(torch.equal(a, b) for a, b in zip(results[0], results.pop(), strict=True))
    expected = [gradient.clone() for gradient in originals]
    reference.znorm_(expected, 1e-10)
    for result, exact in zip(results[0], expected, strict=False):
        assert (result - exact).norm() < 1e-6 * exact.norm()


def test_more_than_two_to_the_31_elements():
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


def test_other_streams_and_fresh_tables(backend):
    """Many steps without waiting: each reads the table of its own addresses."""
    sets = [draw(1000, 50_000, 200_001, mean=step / 10) for step in range(50)]
    expected = [[gradient.clone() for gradient in gradients] for gradients in sets]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for gradients in sets:
            backend.znorm_(gradients, 1e-10)
    torch.cuda.synchronize()
    for gradients, exact in zip(sets, expected, strict=True):
        reference.znorm_(exact, 1e-10)
        torch.testing.assert_close(gradients, exact)


@pytest.mark.parametrize("sizes", [(1000, 50_000), (1001, 50_001)])
def test_capture_in_a_graph(backend, sizes):
    gradients = draw(*sizes)
    backend.znorm_(draw(7, 1000), 1e-10)  # compiles; the plan of these sizes is made in the graph
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        backend.znorm_(gradients, 1e-10)
    for seed in range(3):
        fresh = [torch.randn_like(gradient) * (seed + 1) for gradient in gradients]
        for gradient, values in zip(gradients, fresh, strict=True):
            gradient.copy_(values)
        graph.replay()
        reference.znorm_(fresh, 1e-10)
        torch.testing.assert_close(gradients, fresh)
    again = draw(*sizes)  # the plan of the graph is its own
    expected = [gradient.clone() for gradient in again]
    backend.znorm_(again, 1e-10)
    reference.znorm_(expected, 1e-10)
    torch.testing.assert_close(again, expected)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true"])
@pytest.mark.parametrize("fused", [False, True])
def test_a_trainer(backend, precision, fused):
    if precision in ("16-true", "64-true") and fused:
        pytest.skip("fused optimizers are tried in the precisions that people train in")

    def optimizer(parameters):
        return torch.optim.SGD(parameters, lr=0.05, fused=fused)

    module = make_module(network=small_network(), optimizer=optimizer)
    before = copy.deepcopy(module.state_dict())
    trainer = make_trainer(accelerator="gpu", precision=precision, max_epochs=2, callbacks=[ZNorm(log_stats="summary")])
    trainer.fit(module)
    assert trainer.global_step > 10
    for name, value in module.state_dict().items():
        assert value.isfinite().all()
        assert not torch.equal(value.float().cpu(), before[name].float().cpu())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_fused_optimizers_take_what_attach_gives(backend, dtype, make):
    weight = nn.Parameter(torch.linspace(-1, 2, 5000, device="cuda", dtype=dtype))
    twin = nn.Parameter(weight.detach().clone())
    ours, theirs = make([weight], lr=0.1, fused=True), make([twin], lr=0.1, fused=True)
    handle = attach(ours, ZNorm())
    for seed in range(3):
        torch.manual_seed(seed)
        weight.grad = torch.randn_like(weight) * 1e-3
        twin.grad = weight.grad.clone()
        reference.znorm_([twin.grad], 1e-10)
        ours.step()
        theirs.step()
    handle.remove()
    torch.testing.assert_close(weight, twin)
