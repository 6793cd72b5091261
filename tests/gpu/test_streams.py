"""Streams, graphs and devices: nothing waits for the host, and everything for what it needs."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from lightning_znorm import ZNorm, attach, centralize_, znorm_
from lightning_znorm.backends import describing, reference
from tests.gpu.gradients import draw
from tests.helpers import parameter, relative_error, znorm_by_numpy


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
        gradients = [p.grad for p in parameters]
        with synchronization_is_an_error():
            znorm_(parameters)
            znorm_(parameters, grad_scale=scale)
            centralize_(parameters)
            centralize_(parameters, grad_scale=scale)
            describing.compare_gradients(gradients, gradients, 0.1, scale)
            optimizer.step()


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
def test_a_graph_is_replayed_with_other_inputs(backend, sizes):
    gradients = draw(*sizes)
    backend.znorm_(draw(7, 1000), 1e-10)  # compiles; the plan of these sizes is made in the graph
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        stats = backend.znorm_(gradients, 1e-10)
    sets, results = [], []
    for seed in range(100):  # without waiting for any of them
        sets.append([torch.randn_like(gradient) * (seed + 1) + seed for gradient in gradients])
        for gradient, values in zip(gradients, sets[-1], strict=True):
            gradient.copy_(values)
        graph.replay()
        results.append(([gradient.clone() for gradient in gradients], stats.clone()))
    for given, (found, statistics) in zip(sets, results, strict=True):
        exact = reference.znorm_(given, 1e-10)
        torch.testing.assert_close(found, given, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(statistics, exact, rtol=1e-5, atol=1e-5)
    again = draw(*sizes)  # the plan of the graph is its own
    expected = [gradient.clone() for gradient in again]
    backend.znorm_(again, 1e-10)
    reference.znorm_(expected, 1e-10)
    torch.testing.assert_close(again, expected)


def test_gradients_on_the_gpu_and_the_cpu(backend):
    sizes, devices = [5, 70_000, 900, 3], ["cuda", "cpu", "cpu", "cuda"]
    gradients = [draw(size)[0].to(device) for size, device in zip(sizes, devices, strict=True)]
    expected = [znorm_by_numpy(gradient.cpu()) for gradient in gradients]
    parameters = [parameter(gradient) for gradient in gradients]
    stats = znorm_(parameters)
    for each, exact in zip(parameters, expected, strict=True):
        assert relative_error(each.grad.cpu(), exact) < 1e-6
    assert {device.type: found.index for device, found in stats.by_device.items()} == {"cuda": (0, 3), "cpu": (1, 2)}
    assert stats.mean.shape == (4,)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("current", [0, 1])
def test_two_gpus(backend, current):
    """Whichever is the current one."""
    gradients = [*draw(5, 70_000, device="cuda:1"), *draw(900, 5000, device="cuda:0"), *draw(12, device="cuda:1")]
    expected = [znorm_by_numpy(gradient.cpu()) for gradient in gradients]
    parameters = [parameter(gradient) for gradient in gradients]
    with torch.cuda.device(current):
        stats = znorm_(parameters)
    for each, exact in zip(parameters, expected, strict=True):
        assert relative_error(each.grad.cpu(), exact) < 1e-6
    assert [found.index for found in stats.by_device.values()] == [(0, 1, 4), (2, 3)]
    with torch.cuda.device(current):
        centralize_(parameters)
