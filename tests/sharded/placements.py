"""Gradients of every shape, mesh and placement, and what each rank should hold of them."""

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from tests.helpers import znorm_by_numpy
from tests.sharded.ranks import DEVICE

SHAPES = ((5,), (1,), (2,), (7, 3), (4, 6), (3, 1), (1, 8), (3, 4, 2, 2), (60, 70), ())


def line():
    """A mesh of one dimension."""
    return init_device_mesh(DEVICE.type, (dist.get_world_size(),))


def meshes():
    """Of one dimension for up to three ranks, of two for four."""
    count = dist.get_world_size()
    if count < 4:
        yield line()
    if count in (1, 4):
        yield init_device_mesh(DEVICE.type, (count // 2 or 1, 2 if count == 4 else 1), mesh_dim_names=("dp", "tp"))


def placements_for(mesh, shape):
    """Every combination of placements that a tensor of this shape allows."""
    choices = [Replicate(), *(Shard(dim) for dim in range(min(len(shape), 2)))]
    if mesh.ndim == 1:
        return [(choice,) for choice in choices]
    return [(first, second) for first in choices for second in choices]


def whole_gradients(dtype=torch.float32, offset=1.0, scale=0.3):
    """The same on every rank."""
    generator = torch.Generator().manual_seed(5)
    return [
        (torch.randn(shape, generator=generator, dtype=torch.float64) * scale + offset).to(dtype) for shape in SHAPES
    ]


def shard(gradient, mesh, placements):
    """A parameter whose gradient is distributed."""
    # without communication, as every rank has the whole
    gradient = gradient.to(DEVICE)
    parameter = nn.Parameter(distribute_tensor(torch.zeros_like(gradient), mesh, placements, src_data_rank=None))
    parameter.grad = distribute_tensor(gradient.clone(), mesh, placements, src_data_rank=None)
    return parameter


def shard_all(dtype=torch.float32, **options):
    """Parameters of every shape, mesh and placement, and their whole gradients."""
    gradients = whole_gradients(dtype, **options)
    pairs = [
        (shard(gradient, mesh, placements), gradient)
        for mesh in meshes()
        for gradient in gradients
        for placements in placements_for(mesh, gradient.shape)
    ]
    return zip(*pairs, strict=True)


def each_once(function, gradients):
    """Apply a slow function to each gradient of a list that has them several times."""
    results = {id(gradient): function(gradient) for gradient in {id(g): g for g in gradients}.values()}
    return [results[id(gradient)] for gradient in gradients]


def part_of(whole, parameter):
    """What this rank should hold, without communication."""
    mesh, placements = parameter.device_mesh, parameter.placements
    return distribute_tensor(whole.to(DEVICE), mesh, placements, src_data_rank=None).to_local()


def check(parameters, expected, tolerance):
    """The error of this rank's part, over the norm of the whole."""
    for parameter, exact in zip(parameters, expected, strict=True):
        whole = torch.from_numpy(np.asarray(exact, dtype="float64"))
        error = (parameter.grad.to_local().double() - part_of(whole, parameter)).norm()
        assert error <= tolerance * whole.norm(), (parameter.placements, parameter.shape)


def expect_znorm(gradient):
    return znorm_by_numpy(gradient) if gradient.numel() > 1 else gradient.double().numpy().astype(np.longdouble)
