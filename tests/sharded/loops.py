"""Plain PyTorch loops with `attach`: every sharding, and the ways in which parameters and gradients are special."""

import itertools

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from lightning_znorm import GradientCentralization, GradientClipping, GradientStats, GradientTransform, ZNorm, attach
from lightning_znorm._lightning import MisconfigurationError
from tests.sharded import training
from tests.sharded.ranks import DEVICE, count_collectives, on
from tests.sharded.training import (
    SHARDINGS,
    STEPS,
    advance,
    check_weights,
    count_meshes,
    gather,
    make_batch,
    make_network,
    make_sgd,
    train,
    train_by_hand,
)


@on(1, 2, 3, 4)
def every_sharding_with_znorm():
    expected = train_by_hand(training.znorm())
    for shard in SHARDINGS[dist.get_world_size()]:
        weights, counts = train(shard, ZNorm())
        check_weights(weights, expected)
        assert counts == [count_meshes(shard)] * STEPS


@on(1, 2, 4)
def every_sharding_with_centralization():
    expected = train_by_hand(training.centralization)
    for shard in SHARDINGS[dist.get_world_size()]:
        weights, counts = train(shard, GradientCentralization())
        check_weights(weights, expected)
        assert counts == [count_meshes(shard)] * STEPS


@on(1, 2, 3)
def every_sharding_with_clipping():
    for norm_type in (2.0, torch.inf):
        expected = train_by_hand(training.clipping(0.05, norm_type))
        for shard in SHARDINGS[dist.get_world_size()]:
            weights, _ = train(shard, GradientClipping(0.05, norm_type))
            check_weights(weights, expected, least=0.0)


@on(1, 2, 3)
def accumulation():
    expected = train_by_hand(training.znorm(), accumulate=3)
    weights, counts = train(training.fsdp2, ZNorm(), accumulate=3)
    check_weights(weights, expected)
    assert counts == [1] * STEPS


@on(1, 3)
def parameters_that_are_left_out():
    for options in ({"exclude": ["0.weight", "3.bias"]}, {"min_ndim": 2}, {"center": False}):
        weights, _ = train(training.fsdp2, ZNorm(**options))
        check_weights(weights, train_by_hand(training.znorm(**options)))


@on(1, 2, 3)
def adam():
    def make_adam(parameters):
        return torch.optim.Adam(parameters, lr=0.01, eps=1e-4)

    weights, counts = train(training.fsdp2_by_layer, ZNorm(), optimizer=make_adam)
    check_weights(weights, train_by_hand(training.znorm(), optimizer=make_adam), tolerance=5e-6)
    assert counts == [1] * STEPS


@on(1, 2, 4)
def parameters_frozen_on_the_way():
    def freeze(step, network):
        if step == 1:
            network[2].requires_grad_(False)
            for parameter in network[2].parameters():
                parameter.grad = None

    weights, counts = train(training.fsdp2_by_layer, ZNorm(), before_step=freeze)
    check_weights(weights, train_by_hand(training.znorm(), before_step=freeze))
    assert counts == [1] * STEPS


@on(2, 3)
def a_gradient_that_is_missing_on_one_rank():
    """The shard counts as zeros there, and no rank waits for another."""
    rows = 12 // dist.get_world_size()

    def drop(step, network):
        parameter = network[0].weight
        if isinstance(parameter, DTensor):
            if dist.get_rank() == 1:
                parameter.grad = None
        else:
            parameter.grad[rows : 2 * rows] = 0.0  # those of rank 1

    def hold(transform):
        """By hand, the rows of rank 1 are not changed."""

        def held(gradients):
            return {
                name: values * (torch.arange(12).view(12, 1) // rows != 1).numpy() if name == "0.weight" else values
                for name, values in transform(gradients).items()
            }

        return held

    def make_plain_sgd(parameters):
        return torch.optim.SGD(parameters, lr=0.02)

    weights, counts = train(training.fsdp2, ZNorm(), before_step=drop, optimizer=make_plain_sgd)
    expected = train_by_hand(hold(training.znorm()), before_step=drop, optimizer=make_plain_sgd)
    for name, weight in weights.items():
        torch.testing.assert_close(weight.double(), expected[name], rtol=0, atol=1e-6)
    assert counts == [1] * STEPS


@on(1, 2, 3)
def tied_weights():
    weights, counts = train(training.fsdp2, ZNorm(), network=training.make_tied_network())
    expected = train_by_hand(training.znorm(), network=training.make_tied_network())
    for name, weight in weights.items():
        torch.testing.assert_close(weight.double(), expected[name], rtol=0, atol=3e-6)
    assert counts == [1] * STEPS


@on(2, 4)
def plain_tensors_beside_dtensors():
    """Plain layers get the gradients of all ranks from the loop."""

    def shard(network):
        sharding = training.fsdp2(network[0])
        fully_shard(network[2], mesh=network[0].weight.device_mesh)
        return sharding

    def average(step, network):
        for parameter in itertools.chain(network[3].parameters(), network[4].parameters()):
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()

    weights, counts = train(shard, ZNorm(), before_step=average)
    check_weights(weights, train_by_hand(training.znorm()))
    assert counts == [1] * STEPS


@on(4)
def several_meshes():
    def shard(network):
        fully_shard(network[0], mesh=init_device_mesh(DEVICE.type, (4,)))
        fully_shard(network[2], mesh=init_device_mesh(DEVICE.type, (2, 2), mesh_dim_names=("replicate", "shard")))
        for layer in network[3:]:
            fully_shard(layer, mesh=init_device_mesh(DEVICE.type, (4,)))
        return training.Sharding(network, 4, dist.get_rank())

    weights, counts = train(shard, ZNorm())
    check_weights(weights, train_by_hand(training.znorm()))
    assert counts == [1] * STEPS, "all of them are meshes of all ranks"


@on(2, 3)
def columns_sharded_and_offloaded():
    def by_column(parameter):
        return Shard(1) if parameter.ndim == 2 and parameter.shape[1] % dist.get_world_size() == 0 else None

    for options in (
        {"shard_placement_fn": by_column},
        {"offload_policy": CPUOffloadPolicy(pin_memory=False)},
    ):
        for transform, by_hand in (
            (ZNorm(), training.znorm()),
            (GradientCentralization(), training.centralization),
        ):
            weights, counts = train(lambda network, o=options: training.fsdp2(network, **o), transform)
            check_weights(weights, train_by_hand(by_hand))
            assert counts == [1] * STEPS


@on(1, 2)
def gradients_in_bfloat16():
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    weights, _ = train(lambda network: training.fsdp2(network, mp_policy=policy), ZNorm())
    expected = train_by_hand(training.znorm())
    assert training.compare_changes(weights, expected) < 0.1
    half = make_network().bfloat16()

    def share(network):
        sharding = training.fsdp2(network)
        sharding.share_of = lambda batch, share=sharding.share_of: [tensor.bfloat16() for tensor in share(batch)]
        return sharding

    weights, counts = train(share, ZNorm(), network=half)
    assert all(weight.dtype == torch.bfloat16 for weight in weights.values())
    assert training.compare_changes(weights, expected) < 0.1
    assert counts == [1] * STEPS


@on(1, 2, 3)
def an_optimizer_per_part():
    network = make_network()
    sharding = training.fsdp2_by_layer(network)
    parts = [make_sgd(network[:2].parameters()), make_sgd(network[2:].parameters())]
    transform = ZNorm()
    handles = [attach(part, transform, network) for part in parts]
    for step in range(STEPS):
        inputs, targets = sharding.share_of(make_batch(step))
        for part in parts:
            part.zero_grad()
        training.loss_of(network, inputs, targets).backward()
        for part in parts:
            with count_collectives() as found:
                part.step()
            assert found.count == 1
    check_weights(gather(network), train_by_hand(training.znorm()))
    for handle in handles:
        handle.remove()


@on(2)
def a_transform_that_knows_no_shards_and_leaves_them_out():
    class Sign(GradientTransform):
        def transform(self, parameters, grad_scale):
            for parameter in parameters:
                parameter.grad.sign_()
            return GradientStats({})

    network = nn.Sequential(nn.Linear(7, 6), nn.Linear(6, 1)).to(DEVICE)
    training.fsdp2(network[0])
    stepper = make_sgd(network.parameters())
    with attach(stepper, Sign(exclude="0.*", nonfinite="raise"), network):
        inputs, targets = make_batch(0)
        training.loss_of(network, inputs, targets).backward()
        before = network[0].weight.grad.full_tensor()
        stepper.step()
    assert torch.equal(network[0].weight.grad.full_tensor(), before)
    assert set(network[1].weight.grad.flatten().tolist()) <= {-1.0, 0.0, 1.0}
    with pytest.raises(MisconfigurationError, match="`Sign` has no arithmetic for sharded gradients"):
        attach(stepper, Sign(), network)


@on(1, 2, 3)
def skipped_steps():
    def plant(step, network):
        if step == 1 and (dist.get_rank() == 0 or not isinstance(network[0].weight, DTensor)):
            gradient = network[0].weight.grad
            (gradient.to_local() if isinstance(gradient, DTensor) else gradient)[0, 0] = torch.nan

    def skip(transform):
        return lambda gradients: (
            {name: torch.zeros_like(gradient) for name, gradient in gradients.items()}
            if gradients["0.weight"].isnan().any()
            else transform(gradients)
        )

    def make_plain_sgd(parameters):
        return torch.optim.SGD(parameters, lr=0.02)

    weights, counts = train(training.fsdp2, ZNorm(nonfinite="skip"), before_step=plant, optimizer=make_plain_sgd)
    expected = train_by_hand(skip(training.znorm()), before_step=plant, optimizer=make_plain_sgd)
    check_weights(weights, expected)
    assert counts == [1] * STEPS


@on(2, 4)
def resumed_by_fewer_ranks():
    """Two steps by all ranks, saved as shards; two more by half of them, whose mesh is a part of all ranks."""
    ranks = dist.get_world_size()

    network = make_network()
    sharding = training.fsdp2(network)
    stepper = make_sgd(network.parameters())
    handle = attach(stepper, ZNorm(), network)
    advance(network, stepper, sharding, range(2))
    model_state, optimizer_state = get_state_dict(network, stepper)
    dcp.save({"model": model_state, "optimizer": optimizer_state, "handle": handle.state_dict()}, checkpoint_id="half")
    handle.remove()

    network = make_network()
    mesh = init_device_mesh(DEVICE.type, (2, ranks // 2), mesh_dim_names=("copy", "shard"))["shard"]
    fully_shard(network, mesh=mesh)
    sharding = training.Sharding(network, mesh.size(), mesh.get_local_rank())
    stepper = make_sgd(network.parameters())
    model_state, optimizer_state = get_state_dict(network, stepper)
    state = {"model": model_state, "optimizer": optimizer_state, "handle": {"step": 0, "epoch": 0}}
    dcp.load(state, checkpoint_id="half")
    set_state_dict(network, stepper, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    handle = attach(stepper, ZNorm(), network)
    handle.load_state_dict(state["handle"])
    assert handle.step == 2
    advance(network, stepper, sharding, range(2, STEPS))
    check_weights(gather(network), train_by_hand(training.znorm()))
    handle.remove()
