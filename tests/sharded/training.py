"""A short training of a sharded model, and the same by hand in one process: float64, whole batches, NumPy."""

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from lightning_znorm import attach
from tests.helpers import centralize_by_numpy, znorm_by_numpy
from tests.sharded.ranks import DEVICE, count_collectives

STEPS, BATCH = 4, 12  # samples of all ranks together


def make_network():
    """Weights that no number of ranks divides, a bias of one element, and no gradient that is zero but for rounding."""
    torch.manual_seed(3)
    network = nn.Sequential(nn.Linear(7, 12), nn.Tanh(), nn.Linear(12, 6), nn.LayerNorm(6), nn.Linear(6, 1))
    return network.to(DEVICE)


def make_tied_network():
    """The network and two layers more, the last of which has the weight of the last one before."""
    network = make_network()
    network.append(nn.Linear(1, 6).to(DEVICE))
    network.append(nn.Linear(6, 1).to(DEVICE))
    network[6].weight = network[4].weight
    return network


def make_batch(step):
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(BATCH, size, generator=generator).to(DEVICE) for size in (7, 1)]


def loss_of(network, inputs, targets):
    return nn.functional.mse_loss(network(inputs), targets)


def make_sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.02, momentum=0.9)


def znorm(eps=1e-10, exclude=(), min_ndim=0, center=True):
    """ZNorm by NumPy, for `train_by_hand`."""

    def transform(gradients):
        return {
            name: gradient
            if name in exclude or gradient.ndim < min_ndim or gradient.numel() < 2
            else znorm_by_numpy(gradient, eps)
            if center
            else gradient.numpy() / (gradient.square().mean().sqrt().item() + eps)
            for name, gradient in gradients.items()
        }

    return transform


def centralization(gradients):
    return {name: centralize_by_numpy(gradient) for name, gradient in gradients.items()}


def clipping(max_norm, norm_type):
    def transform(gradients):
        norm = np.linalg.norm(np.concatenate([gradient.flatten() for gradient in gradients.values()]), norm_type)
        return {name: gradient * min(1.0, max_norm / (norm + 1e-6)) for name, gradient in gradients.items()}

    return transform


def train_by_hand(transform, network=None, accumulate=1, steps=STEPS, optimizer=make_sgd, before_step=None):
    """Return the weights after a training in one process, with a transform of gradients by name."""
    network = (network or make_network()).cpu().double()
    stepper = optimizer(network.parameters())
    for step in range(steps):
        stepper.zero_grad()
        for part in range(accumulate):
            inputs, targets = (tensor.cpu().double() for tensor in make_batch(step * accumulate + part))
            (loss_of(network, inputs, targets) / accumulate).backward()
        if before_step is not None:
            before_step(step, network)
        gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
        for name, values in transform(gradients).items():
            gradients[name].copy_(torch.as_tensor(np.asarray(values, dtype="float64")))
        stepper.step()
    return {name: parameter.detach() for name, parameter in network.named_parameters()}


def train(shard, transform, network=None, accumulate=1, steps=range(STEPS), optimizer=make_sgd, before_step=None):
    """Return the weights after a training by the package, and the numbers of collectives in its steps."""
    network = network or make_network()
    sharding = shard(network)
    stepper = optimizer(network.parameters())
    handle = attach(stepper, transform, network)
    counts = []
    for step in steps:
        stepper.zero_grad()
        for part in range(accumulate):
            inputs, targets = sharding.share_of(make_batch(step * accumulate + part))
            if hasattr(network, "set_requires_gradient_sync"):
                network.set_requires_gradient_sync(part == accumulate - 1)
            (loss_of(network, inputs, targets) / accumulate).backward()
        if before_step is not None:
            before_step(step, network)
        with count_collectives() as found:
            stepper.step()
        counts.append(found.count)
    handle.remove()
    return gather(network), counts


def advance(network, stepper, sharding, steps):
    for step in steps:
        stepper.zero_grad()
        loss_of(network, *sharding.share_of(make_batch(step))).backward()
        stepper.step()


def gather(network):
    """The whole weights."""
    return {
        name: (parameter.full_tensor() if isinstance(parameter, DTensor) else parameter).detach().cpu()
        for name, parameter in network.named_parameters()
    }


def check_weights(found, expected, tolerance=1e-6, least=1e-3):
    """Each weight as by hand, the same bits on all ranks, and changed by more than the least."""
    assert found.keys() == expected.keys()
    for name, weight in found.items():
        assert (weight - expected[name]).abs().max() <= tolerance, name
    flat = torch.cat([weight.float().flatten() for weight in found.values()]).to(DEVICE)
    others = [torch.empty_like(flat) for _ in range(dist.get_world_size())]
    dist.all_gather(others, flat)
    assert all(torch.equal(flat, other) for other in others), "ranks differ"
    untrained = make_network().cpu().state_dict()
    assert all((weight - untrained[name]).abs().max() > least for name, weight in found.items() if name in untrained)


def compare_changes(found, expected):
    """The norm of the difference of all weights over that of their change."""
    first = make_network().cpu().state_dict()
    difference = torch.cat([(weight.double() - expected[name]).flatten() for name, weight in found.items()])
    return (difference.norm() / torch.cat([(expected[name] - first[name]).flatten() for name in found]).norm()).item()


class Sharding:
    """A way to shard the network: the number of ranks that get different samples, and the place of this one."""

    def __init__(self, shards, ranks, position):
        self.shards, self.ranks, self.position = shards, ranks, position

    def share_of(self, batch):
        size = BATCH // self.ranks
        return [tensor[self.position * size : (self.position + 1) * size] for tensor in batch]


def fsdp2(network, **options):
    """One group of all parameters."""
    mesh = init_device_mesh(DEVICE.type, (dist.get_world_size(),))
    fully_shard(network, mesh=mesh, **options)
    return Sharding(network, mesh.size(), mesh.get_local_rank())


def fsdp2_by_layer(network, **options):
    mesh = init_device_mesh(DEVICE.type, (dist.get_world_size(),))
    for layer in network:
        if [*layer.parameters()]:
            fully_shard(layer, mesh=mesh, **options)
    fully_shard(network, mesh=mesh, **options)
    return Sharding(network, mesh.size(), mesh.get_local_rank())


def hsdp(network):
    mesh = init_device_mesh(DEVICE.type, (2, dist.get_world_size() // 2), mesh_dim_names=("replicate", "shard"))
    fully_shard(network, mesh=mesh)
    return Sharding(network, dist.get_world_size(), dist.get_rank())


def tensor_parallel(network, mesh=None):
    mesh = mesh or init_device_mesh(DEVICE.type, (dist.get_world_size(),))
    parallelize_module(network, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    return Sharding(network, 1, 0)


def fsdp2_over_tp(network):
    mesh = init_device_mesh(DEVICE.type, (2, dist.get_world_size() // 2), mesh_dim_names=("dp", "tp"))
    tensor_parallel(network, mesh["tp"])
    fully_shard(network, mesh=mesh["dp"])
    return Sharding(network, 2, mesh["dp"].get_local_rank())


SHARDINGS = {
    1: [fsdp2, fsdp2_by_layer, tensor_parallel],
    2: [fsdp2, fsdp2_by_layer, tensor_parallel],
    3: [fsdp2, fsdp2_by_layer],
    4: [fsdp2_by_layer, hsdp, tensor_parallel, fsdp2_over_tp],
}


def count_meshes(shard):
    """With FSDP over tensor parallelism, the layers without the latter have a mesh of their own."""
    return 2 if shard is fsdp2_over_tp else 1
