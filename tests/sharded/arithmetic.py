"""Gradients of every placement, transformed by the ranks together, against NumPy on the whole."""

import itertools
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from lightning_znorm import GradientClipping, ZNorm, attach, centralize_, znorm_
from tests.helpers import centralize_by_numpy, relative_error, znorm_by_numpy
from tests.sharded.placements import (
    SHAPES,
    check,
    each_once,
    expect_znorm,
    line,
    meshes,
    part_of,
    placements_for,
    shard,
    shard_all,
    whole_gradients,
)
from tests.sharded.ranks import DEVICE, count_collectives, on


@on(1, 2, 3, 4)
def znorm_of_every_placement():
    for offset, scale in ((1.0, 0.3), (0.0, 1e-30), (0.0, 1e30), (10.0, 1.0)):
        parameters, gradients = shard_all(offset=offset, scale=scale)
        with count_collectives() as found:
            stats = znorm_(parameters)
        check(parameters, each_once(expect_znorm, gradients), 1e-6)
        assert found.count == 1, "all meshes are of all ranks"
        assert found.bytes == 16 * len(parameters)
        mean = torch.stack([gradient.double().mean() for gradient in gradients])
        std = torch.stack([gradient.double().std(correction=0) for gradient in gradients])
        torch.testing.assert_close(stats.mean, mean, rtol=0, atol=1e-7 * scale)
        torch.testing.assert_close(stats.std, std, rtol=1e-7, atol=1e-7 * scale)


@on(1, 2)
def half_precision_is_rounded_once():
    for dtype in (torch.bfloat16, torch.float16):
        parameters, gradients = shard_all(dtype)
        znorm_(parameters)
        expected = each_once(lambda gradient: torch.from_numpy(expect_znorm(gradient).astype("float64")), gradients)
        for parameter, whole in zip(parameters, expected, strict=True):
            exact = part_of(whole, parameter)
            bound = exact.abs() * torch.finfo(dtype).eps + torch.finfo(dtype).tiny
            assert ((parameter.grad.to_local().double() - exact).abs() <= bound).all()


@on(1, 2, 3)
def float64_is_exact():
    parameters, gradients = shard_all(torch.float64)
    znorm_(parameters)
    check(parameters, each_once(expect_znorm, gradients), 1e-12)


@on(1, 3)
def constants_become_zero():
    for value in (0.1, -3e7, 1e-30, 0.0):
        gradients = [torch.full((size, 5), value) for size in (1, 2, 7, 1000)]
        for mesh in meshes():
            parameters = [shard(gradient, mesh, p) for gradient in gradients for p in placements_for(mesh, (1, 5))]
            znorm_(parameters)
            assert not any(parameter.grad.to_local().any() for parameter in parameters)
            parameters = [shard(gradient, mesh, p) for gradient in gradients for p in placements_for(mesh, (1, 5))]
            centralize_(parameters)
            assert not any(parameter.grad.to_local().any() for parameter in parameters)
            parameters = [shard(gradient, mesh, p) for gradient in gradients for p in placements_for(mesh, (1, 5))]
            znorm_(parameters, center=False, eps=1e-38)
            for parameter in parameters:
                full = parameter.grad.to_local()
                torch.testing.assert_close(full, torch.full_like(full, np.sign(value)), rtol=1e-6, atol=0)


@on(1, 2, 4)
def without_centring():
    parameters, gradients = shard_all()
    stats = znorm_(parameters, center=False)
    exact = (gradient.double().numpy() for gradient in gradients)
    check(parameters, [g / np.sqrt(np.square(g).mean()) if g.size > 1 else g for g in exact], 1e-6)
    torch.testing.assert_close(stats.cosine, torch.ones_like(stats.cosine))


@on(1, 2, 3, 4)
def centralization_of_every_placement():
    parameters, gradients = shard_all()
    with count_collectives() as found:
        stats = centralize_(parameters)
    check(parameters, each_once(centralize_by_numpy, gradients), 1e-6)
    assert found.count == 1
    cosine = [
        torch.nn.functional.cosine_similarity(
            gradient.double().flatten(), torch.from_numpy(centralize_by_numpy(gradient).astype("float64")).flatten(), 0
        )
        if gradient.numel() > 1
        else torch.ones((), dtype=torch.float64)
        for gradient in gradients
    ]
    torch.testing.assert_close(stats.cosine, torch.stack(cosine), rtol=1e-6, atol=1e-6)


@on(1, 2, 3, 4)
def rows_on_one_rank_are_not_exchanged():
    mesh = line()
    gradient = whole_gradients()[SHAPES.index((60, 70))]
    parameter = shard(gradient, mesh, (Shard(0),))
    with count_collectives() as found:
        centralize_([parameter])
    assert found.bytes == 24
    assert relative_error(parameter.grad.full_tensor(), centralize_by_numpy(gradient)) < 1e-6


@on(1, 3)
def clipping_by_the_norm_of_all():
    for norm_type, max_norm in ((0.5, 0.7), (1.0, 0.7), (2.0, 0.7), (2.0, 1e9), (3.0, 0.7), (torch.inf, 0.7)):
        parameters, gradients = shard_all()
        plain = nn.Parameter(torch.zeros(6))
        plain.grad = torch.linspace(-1, 2, 6)
        everything = torch.cat([gradient.double().flatten() for gradient in (*gradients, plain.grad)])
        norm = torch.linalg.vector_norm(everything, norm_type)
        factor = min(1.0, max_norm / (norm.item() + 1e-6))
        optimizer = torch.optim.SGD([*parameters, plain], lr=0.0)
        expected = [gradient.double().numpy() * factor for gradient in gradients]
        of_plain = plain.grad.double() * factor
        handle = attach(optimizer, GradientClipping(max_norm, norm_type))
        with count_collectives() as found:
            optimizer.step()
        handle.remove()
        check(parameters, expected, 1e-6)
        torch.testing.assert_close(plain.grad.double(), of_plain, rtol=1e-6, atol=0)
        assert found.count == 1


@on(2, 3, 4)
def ranks_without_a_gradient_do_not_hold_up_the_others():
    mesh, rank = line(), dist.get_rank()
    gradients = [gradient for gradient in whole_gradients() if gradient.ndim]
    parameters = [shard(gradient, mesh, (Shard(0),)) for gradient in gradients]
    local = [parameter.grad.to_local() for parameter in parameters]
    if rank == 1:
        for parameter in parameters[::2]:
            parameter.grad = None
    for transform in (znorm_, centralize_):
        transform(parameters)
    # missing parts count as zeros
    for number, (parameter, gradient, part) in enumerate(zip(parameters, gradients, local, strict=True)):
        rows = gradient.split(-(-len(gradient) // dist.get_world_size()))
        if number % 2 == 0 and len(rows) > 1:
            gradient = torch.cat([torch.zeros_like(row) if i == 1 else row for i, row in enumerate(rows)])
        exact = torch.from_numpy(expect_znorm(gradient).astype("float64"))
        exact = torch.from_numpy(centralize_by_numpy(exact).astype("float64"))
        chunk = -(-len(gradient) // dist.get_world_size())
        own = exact[rank * chunk : (rank + 1) * chunk]
        if parameter.grad is not None:
            torch.testing.assert_close(part.double(), own, rtol=0, atol=3e-6)


@on(2, 4)
def partial_sums_are_added_up_first():
    for mesh in meshes():
        other = [Replicate()] * (mesh.ndim - 1)
        gradient = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
        parameter = nn.Parameter(distribute_tensor(torch.zeros(4, 3), mesh, [Replicate(), *other]))
        part = gradient * (1 + mesh.get_local_rank(0)) if mesh.ndim > 1 else gradient * (1 + mesh.get_local_rank())
        parameter.grad = DTensor.from_local(part, mesh, [Partial(), *other], run_check=False)
        znorm_([parameter])
        assert relative_error(parameter.grad.full_tensor(), znorm_by_numpy(gradient)) < 1e-6


@on(1, 2, 3, 4)
def inf_and_nan_leave_the_whole_tensor_unchanged():
    for bad in (torch.inf, -torch.inf, torch.nan):
        for transform in (znorm_, centralize_):
            parameters, _ = shard_all()
            for parameter in parameters:
                part = parameter.grad.to_local()
                if part.numel() and dist.get_rank() == 0:
                    part.view(-1)[-1] = bad
            before = [parameter.grad.to_local().clone() for parameter in parameters]
            stats = transform(parameters)
            for parameter, part in zip(parameters, before, strict=True):
                torch.testing.assert_close(parameter.grad.to_local(), part, rtol=0, atol=0, equal_nan=True)
            assert (stats.cosine == 1).all()
            assert not stats.std[stats.mean.isfinite()].isfinite().any()


@on(1, 2, 4)
def replicas_get_the_same_bits():
    parameters, _ = shard_all()
    znorm_(parameters)
    for mesh in meshes():
        for dim in range(mesh.ndim):
            copied = [p for p in parameters if p.device_mesh == mesh and p.placements[dim].is_replicate()]
            part = torch.cat([parameter.grad.to_local().flatten() for parameter in copied])
            copies = [torch.empty_like(part) for _ in range(mesh.size(dim))]
            dist.all_gather(copies, part, group=mesh.get_group(dim))
            assert all(torch.equal(part, copy) for copy in copies)


@on(1, 2)
def gradients_of_another_kind_than_their_parameter_are_refused():
    gradient = torch.arange(12.0, device=DEVICE).view(4, 3).square()
    sharded, plain = shard(gradient, line(), (Shard(0),)), nn.Parameter(torch.zeros(4, 3, device=DEVICE))
    plain.grad, sharded.grad = sharded.grad, torch.ones_like(sharded)
    for parameters, message in (
        ([plain], r"`parameters\[0\]` has the type `DTensor`"),
        ([plain, shard(gradient, line(), (Shard(0),))], r"`parameters\[0\]` has the type `DTensor`"),
    ):
        with pytest.raises(TypeError, match=message):
            znorm_(parameters)
    whole = nn.Parameter(sharded.detach())
    whole.grad = gradient
    with pytest.raises(TypeError, match=r"`parameters\[0\]` is a DTensor, but its gradient is a plain tensor"):
        znorm_([whole])


@on(2)
def gradients_that_are_still_on_their_way():
    """With `async_op`, DTensor hands out gradients that must be waited for."""
    weight = nn.Parameter(distribute_tensor(torch.arange(1.0, 7.0, device=DEVICE), line(), (Shard(0),)))
    copied = weight.redistribute(placements=[Replicate()], async_op=True)
    copied.to_local(grad_placements=[Partial()]).pow(3).sum().backward()
    znorm_([weight])
    exact = znorm_by_numpy(3 * torch.arange(1.0, 7.0).double().square() * dist.get_world_size())
    check([weight], [exact], 1e-6)


@on(3)
def ranks_outside_of_a_mesh_have_nothing_to_do():
    mesh = DeviceMesh(DEVICE.type, [1, 0])
    gradient = whole_gradients()[SHAPES.index((7, 3))]
    parameter = shard(gradient, mesh, (Shard(0),))
    plain = nn.Parameter(torch.zeros(5, device=DEVICE))
    plain.grad = torch.arange(5.0, device=DEVICE)
    with count_collectives() as found:
        stats = znorm_([parameter, plain])
    assert found.count == (dist.get_rank() < 2)
    assert len(stats) == 1 + (dist.get_rank() < 2)
    assert abs(plain.grad.std(correction=0) - 1) < 1e-6
    if dist.get_rank() < 2:
        check([parameter], [znorm_by_numpy(gradient)], 1e-6)


@on(2)
def the_order_of_ranks_makes_no_difference():
    gradient = whole_gradients()[SHAPES.index((7, 3))]
    meshes = [DeviceMesh(DEVICE.type, ranks) for ranks in ([0, 1], [1, 0])]
    parameters = [shard(gradient, mesh, (Shard(0),)) for mesh in meshes]
    with count_collectives() as found:
        znorm_(parameters)
    assert found.count == 1
    check(parameters, [znorm_by_numpy(gradient)] * 2, 1e-6)


@on(4)
def meshes_of_some_ranks_have_a_collective_each():
    world = init_device_mesh(DEVICE.type, (2, 2), mesh_dim_names=("outer", "inner"))
    gradient = whole_gradients()[SHAPES.index((7, 3))]
    parameters = [
        shard(gradient, world["inner"], (Shard(0),)),
        shard(gradient * 2, world["outer"], (Shard(1),)),
        shard(gradient + 3, world["inner"], (Shard(1),)),
        shard(gradient - 3, world, (Shard(0), Shard(1))),
    ]
    with count_collectives() as found:
        znorm_(parameters)
    assert found.count == 3
    for parameter, exact in zip(parameters, (gradient, gradient * 2, gradient + 3, gradient - 3), strict=True):
        assert relative_error(parameter.grad.full_tensor(), znorm_by_numpy(exact)) < 1e-6


@on(4)
def a_mesh_of_two_dimensions_within_more_ranks():
    cube = init_device_mesh(DEVICE.type, (1, 2, 2), mesh_dim_names=("pipeline", "dp", "tp"))
    mesh = cube["dp", "tp"]
    gradient = whole_gradients()[SHAPES.index((60, 70))]
    parameter = shard(gradient, mesh, (Shard(0), Shard(1)))
    znorm_([parameter])
    assert relative_error(parameter.grad.full_tensor(), znorm_by_numpy(gradient)) < 1e-6


@on(1, 2, 3, 4)
def skip_and_raise_on_all_ranks_with_one_collective():
    mesh, rank = line(), dist.get_rank()
    gradient = torch.linspace(-1.0, 2.0, 12).view(4, 3)
    bad_ranks, names = range(min(2, dist.get_world_size())), ("excluded", "second", "plain", None)
    for mode, bad_rank, name in itertools.product(("skip", "raise"), bad_ranks, names):
        everything = {key: shard(gradient, mesh, (Shard(0),)) for key in ("excluded", "first", "second")}
        everything["plain"] = nn.Parameter(torch.zeros(3))
        everything["plain"].grad = torch.arange(3.0)
        optimizer = torch.optim.SGD(everything.items(), lr=0.0)
        handle = attach(optimizer, ZNorm(nonfinite=mode, exclude="excluded"))
        if rank == bad_rank and name is not None:
            bad = everything[name].grad
            (bad.to_local() if name != "plain" else bad).view(-1)[0] = torch.nan
        raises = pytest.raises(RuntimeError, match=f"`{name}`") if mode == "raise" and name else nullcontext()
        with count_collectives() as found, raises:
            optimizer.step()
        assert handle.skipped_steps == (mode == "skip" and name is not None)
        assert all((parameter.grad is None) == handle.skipped_steps for parameter in everything.values())
        # an optimizer's own arithmetic needs no collective
        assert found.count == 1
        handle.remove()
