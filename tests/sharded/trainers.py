"""The callback in Trainers that shard, and `attach` in Fabric, against training by hand."""

import itertools
from functools import partial
from importlib import import_module

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from lightning_znorm import GradientCentralization, GradientClipping, GradientMonitor, ZNorm, attach
from lightning_znorm._lightning import MisconfigurationError
from tests.helpers import PACKAGES, recording_logger
from tests.sharded import training
from tests.sharded.fitting import (
    fit,
    fsdp,
    model_parallel,
    shard_by_both,
    shard_by_fsdp2,
    shard_by_tp,
    wrap_in_configure_model,
)
from tests.sharded.ranks import DEVICE, on
from tests.sharded.training import STEPS, check_weights, compare_changes, gather, make_batch, make_network, make_sgd

MODEL_PARALLEL = {
    1: {"FSDP2": (shard_by_fsdp2, 1, 1)},
    2: {"FSDP2": (shard_by_fsdp2, 2, 1), "tensor parallel": (shard_by_tp, 1, 2)},
    3: {"FSDP2": (shard_by_fsdp2, 3, 1)},
    4: {"FSDP2 x tensor parallel": (shard_by_both, 2, 2)},
}
BY_HAND = {
    "automatic": {},
    "automatic, accumulating 2 batches": {"accumulate": 2},
    "manual": {"manual": True},
    "manual, accumulating 2 batches": {"accumulate": 2, "manual": True},
}


@on(1, 2, 3, 4)
def model_parallel_strategy():
    package = PACKAGES[dist.get_world_size() % 2]
    for (shard, data, tensor), options in itertools.product(
        MODEL_PARALLEL[dist.get_world_size()].values(), BY_HAND.values()
    ):
        strategy = model_parallel(package, data, tensor)
        weights = fit(package, strategy, ZNorm(), shard=shard, **options)
        check_weights(weights, training.train_by_hand(training.znorm(), accumulate=options.get("accumulate", 1)))


@on(2, 3, 4)
def fsdp_strategy():
    package = PACKAGES[dist.get_world_size() % 2]
    for sharding, policy, accumulate in (
        ("FULL_SHARD", None, 1),
        ("SHARD_GRAD_OP", ModuleWrapPolicy({nn.Linear}), 1),
        ("FULL_SHARD", ModuleWrapPolicy({nn.Linear}), 2),
        ("NO_SHARD", None, 1),
    ):
        strategy = fsdp(package, sharding_strategy=sharding, auto_wrap_policy=policy)
        weights = fit(package, strategy, ZNorm(), accumulate=accumulate)
        check_weights(weights, training.train_by_hand(training.znorm(), accumulate=accumulate))


@on(2)
def fsdp_strategy_with_frozen_and_odd_layers():
    """Frozen parameters have no statistics; a parameter whose rows are not in order in memory can be left out."""

    def make_odd_network():
        network = make_network()
        network[2].requires_grad_(False)
        network[0].weight = nn.Parameter(network[0].weight.detach().t().contiguous().t())
        return network

    package, odd = PACKAGES[0], "network.0.weight"
    options = {"module": {"make_network": make_odd_network}, "log_every_n_steps": 1}
    logger, monitor = recording_logger(package), GradientMonitor(every_n_steps=1, exclude=odd)
    fit(package, fsdp(package), ZNorm(exclude=odd, log_stats="layers"), monitor, logger=logger, **options)
    if dist.get_rank() == 0:
        names = {name.partition("/")[2].partition("/")[2] for _, row in logger.rows for name in row}
        assert names == {"network.0.bias", *(f"network.{i}.{kind}" for i in (3, 4) for kind in ("weight", "bias"))}
        assert {row["name"] for row in monitor.history} == names
    with pytest.raises(MisconfigurationError, match=r"the parameter `network\.0\.weight`.*contiguous.*exclude="):
        fit(package, fsdp(package), ZNorm(), **options)


@on(4)
def a_monitor_alone_on_a_mesh_of_some_ranks():
    mesh = init_device_mesh(DEVICE.type, (2, 1, 2), mesh_dim_names=("pipeline", "copy", "shard"))["copy", "shard"]
    monitor = GradientMonitor(every_n_steps=1)

    def shard_on_some(network, _):
        fully_shard(network, mesh=mesh)

    fit(PACKAGES[0], model_parallel(PACKAGES[0], 4, 1), monitor, shard=shard_on_some)
    assert len(monitor.history) == (0 if dist.get_rank() else STEPS * len([*make_network().parameters()]))


@on(2, 3)
def fsdp_strategy_with_tied_weights():
    weights = fit(PACKAGES[1], fsdp(PACKAGES[1]), ZNorm(), module={"make_network": training.make_tied_network})
    expected = training.train_by_hand(training.znorm(), network=training.make_tied_network())
    for name, weight in weights.items():
        assert (weight - expected[name]).abs().max() < 3e-6, name


@on(2, 3)
def fsdp_strategy_in_manual_optimization():
    """PyTorch allows it where the LightningModule itself is not wrapped."""
    package = PACKAGES[dist.get_world_size() % 2]
    for accumulate in (1, 2):
        weights = fit(
            package, fsdp(package), ZNorm(), shard=wrap_in_configure_model, manual=True, accumulate=accumulate
        )
        check_weights(weights, training.train_by_hand(training.znorm(), accumulate=accumulate))


@on(4)
def fsdp_strategy_with_copies():
    """By a mesh, and by process groups of the user's."""
    package = PACKAGES[0]
    mesh = init_device_mesh(DEVICE.type, (2, 2))
    groups = (mesh.get_group(1), mesh.get_group(0))
    for options in ({"device_mesh": mesh}, {"process_group": groups}):
        for callback, by_hand in ((ZNorm(), training.znorm()), (GradientCentralization(), training.centralization)):
            strategy = fsdp(package, sharding_strategy="HYBRID_SHARD", **options)
            check_weights(fit(package, strategy, callback), training.train_by_hand(by_hand))


@on(3)
def fsdp_strategy_with_other_transforms():
    package = PACKAGES[0]
    for wrap in (None, ModuleWrapPolicy({nn.Linear})):
        for callback, by_hand in (
            (GradientCentralization(), training.centralization),
            (ZNorm(exclude=["network.0.weight", "network.3.bias"]), training.znorm(exclude=["0.weight", "3.bias"])),
            (ZNorm(min_ndim=2), training.znorm(min_ndim=2)),
            (ZNorm(center=False, nonfinite="raise"), training.znorm(center=False)),
        ):
            weights = fit(package, fsdp(package, auto_wrap_policy=wrap), callback)
            check_weights(weights, training.train_by_hand(by_hand))
        for norm_type in (1.0, 2.0, torch.inf):
            weights = fit(package, fsdp(package, auto_wrap_policy=wrap), GradientClipping(0.05, norm_type))
            check_weights(weights, training.train_by_hand(training.clipping(0.05, norm_type)), least=0.0)


@on(2)
def precisions():
    """Half precision has the errors of half precision; `compare_changes` divides them by the change of weights."""
    expected = training.train_by_hand(training.znorm())
    found = {}
    for name, package in zip(("FSDP2", "FSDP"), PACKAGES, strict=True):
        for precision in ("32-true", "bf16-mixed", "bf16-true"):
            if name == "FSDP2":
                strategy, shard = model_parallel(package, 2, 1), shard_by_fsdp2
            else:
                strategy, shard = fsdp(package), None
            weights = fit(package, strategy, ZNorm(), shard=shard, precision=precision)
            found[name, precision] = compare_changes(weights, expected)
    assert all(error < (1e-5 if precision == "32-true" else 0.1) for (_, precision), error in found.items()), found


@on(2)
def statistics_of_whole_tensors_are_logged():
    package, means = PACKAGES[0], []

    def remember(gradients):
        means.append({name: gradient.mean().item() for name, gradient in gradients.items()})
        return training.znorm()(gradients)

    training.train_by_hand(remember)
    for strategy, shard in ((model_parallel(package, 2, 1), shard_by_fsdp2), (fsdp(package), None)):
        logger = recording_logger(package)
        options = {"logger": logger, "log_every_n_steps": 1}
        fit(package, strategy, ZNorm(log_stats="layers"), shard=shard, **options)
        if dist.get_rank():
            assert not logger.rows
            continue
        assert [step for step, _ in logger.rows] == [*range(STEPS)]
        for (_, found), expected in zip(logger.rows, means, strict=True):
            for name, mean in expected.items():
                assert abs(found[f"znorm/mean/network.{name}"] - mean) < 1e-6


@on(1, 2, 3, 4)
def monitored_gradients():
    """The statistics of whole gradients, from those that training by hand sees."""
    package, count = PACKAGES[0], dist.get_world_size()
    raw, received = [], []

    def remember(gradients):
        raw.append({name: gradient.clone() for name, gradient in gradients.items()})
        received.append(
            {name: torch.as_tensor(np.asarray(g, float)) for name, g in training.znorm()(gradients).items()}
        )
        return received[-1]

    training.train_by_hand(remember)
    by_layer = fsdp(package, auto_wrap_policy=ModuleWrapPolicy({nn.Linear}))
    kinds = [(model_parallel(package, *sizes), shard) for shard, *sizes in MODEL_PARALLEL[count].values()]
    for strategy, shard in [*kinds, (by_layer, None)]:
        monitor = GradientMonitor(every_n_steps=1, detail="layers", near_zero=0.1)
        fit(package, strategy, ZNorm(), monitor, shard=shard)
        if dist.get_rank():
            assert not monitor.history
            continue
        assert len(monitor.history) == STEPS * len(raw[0])
        for row in monitor.history:
            name = row["name"].removeprefix("network.")
            before, after = raw[row["step"]][name], received[row["step"]][name]
            assert row["ndim"] == before.ndim
            for gradient, prefix in ((before, ""), (after, "received_")):
                expected = {
                    "norm": gradient.norm(),
                    "mean": gradient.mean(),
                    "std": gradient.std(correction=0),
                    "near_zero": (gradient.abs() <= 0.1).double().mean(),
                }
                for key, value in expected.items():
                    assert abs(row[prefix + key] - value) < 1e-5, (name, prefix + key)
            cosine = nn.functional.cosine_similarity(before.flatten(), after.flatten(), 0)
            assert abs(row["cosine"] - cosine) < 1e-6, name


@on(2, 3)
def skipped_steps():
    package = PACKAGES[0]
    for strategy, shard in ((model_parallel(package, dist.get_world_size(), 1), shard_by_fsdp2), (fsdp(package), None)):
        before, znorm = [], ZNorm(nonfinite="skip")

        class Plant(import_module(package).Callback):
            """A NaN in the first element of the network's first weight, in the second step."""

            def on_before_optimizer_step(self, trainer, pl_module, optimizer, seen=before):
                parameter = next(iter(pl_module.parameters()))
                if trainer.global_step == 1 and trainer.global_rank == 0:
                    part = parameter.grad
                    (part.to_local() if hasattr(part, "to_local") else part).view(-1)[0] = torch.nan
                seen.append(parameter.detach().clone())

        fit(package, strategy, Plant(), znorm, shard=shard, module={"optimizer": partial(torch.optim.SGD, lr=0.02)})
        assert znorm.skipped_steps == 1
        if before[0].numel():
            assert not torch.equal(before[0], before[1])
            assert torch.equal(before[1], before[2]), "no rank has made the step"


@on(2)
def in_fabric():
    for package in ("lightning.fabric", "lightning_fabric"):
        module = import_module(package)
        strategy = import_module(f"{package}.strategies").ModelParallelStrategy(
            lambda network, mesh: shard_by_fsdp2(network, mesh) or network,
            data_parallel_size=2,
            tensor_parallel_size=1,
        )
        fabric = module.Fabric(accelerator=DEVICE.type, devices=2, strategy=strategy)
        fabric.launch()
        network = fabric.setup(make_network())
        stepper = fabric.setup_optimizers(make_sgd(network.parameters()))
        handle = attach(stepper, ZNorm(exclude="0.bias"), network, strict=True)
        for step in range(STEPS):
            stepper.zero_grad()
            inputs, targets = training.Sharding(network, 2, dist.get_rank()).share_of(make_batch(step))
            fabric.backward(nn.functional.mse_loss(network(inputs), targets))
            stepper.step()
        check_weights(gather(network.module), training.train_by_hand(training.znorm(exclude=["0.bias"])))
        handle.remove()
