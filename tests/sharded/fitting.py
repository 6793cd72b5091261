"""Trainers that shard, and the module that they fit."""

from importlib import import_module

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.utils.data import DataLoader, TensorDataset

from tests.helpers import QUIET
from tests.sharded import training
from tests.sharded.ranks import BACKEND, DEVICE
from tests.sharded.training import STEPS, gather, make_batch, make_network, make_sgd


def make_module(
    package, shard, manual=False, accumulate=1, optimizer=make_sgd, per_epoch=STEPS, make_network=make_network
):
    """A module that `shard`, if it is given, distributes in `configure_model`."""
    pl = import_module(package)

    class Regression(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = make_network()
            self.automatic_optimization = not manual

        def configure_model(self):
            if shard is not None:
                self.network = shard(self.network, getattr(self, "_device_mesh", None)) or self.network

        def training_step(self, batch, batch_idx):
            loss = nn.functional.mse_loss(self.network(batch[0]), batch[1])
            if manual:
                stepper = self.optimizers()
                if batch_idx % accumulate == 0:
                    stepper.zero_grad()
                self.manual_backward(loss / accumulate)
                if (batch_idx + 1) % accumulate == 0:
                    stepper.step()
                return None
            return loss

        def configure_optimizers(self):
            return optimizer(self.parameters())

        def train_dataloader(self):
            mesh = getattr(self, "_device_mesh", None)
            mesh = None if mesh is None else mesh["data_parallel"]
            ranks, rank = (self.trainer.world_size, self.trainer.global_rank)
            if mesh is not None:
                ranks, rank = mesh.size(), mesh.get_local_rank()
            first = self.trainer.global_step * accumulate
            return make_loader(ranks, rank, range(first, first + per_epoch * accumulate))

    return Regression()


def make_loader(ranks, rank, steps):
    size = training.BATCH // ranks
    batches = [[tensor[rank * size : (rank + 1) * size] for tensor in make_batch(step)] for step in steps]
    return DataLoader(TensorDataset(*map(torch.cat, zip(*batches, strict=True))), batch_size=size)


def shard_by_fsdp2(network, mesh):
    for layer in network:
        if [*layer.parameters()]:
            fully_shard(layer, mesh=mesh["data_parallel"])
    fully_shard(network, mesh=mesh["data_parallel"])


def shard_by_tp(network, mesh):
    training.tensor_parallel(network, mesh["tensor_parallel"])


def shard_by_both(network, mesh):
    shard_by_tp(network, mesh)
    fully_shard(network, mesh=mesh["data_parallel"])


def model_parallel(package, data, tensor):
    strategies = import_module(f"{package}.strategies")
    return strategies.ModelParallelStrategy(
        data_parallel_size=data, tensor_parallel_size=tensor, process_group_backend=BACKEND
    )


def fsdp(package, **options):
    """Lightning's FSDPStrategy; a subclass may run on a CPU, and must tell FullyShardedDataParallel to do so."""
    base = import_module(f"{package}.strategies").FSDPStrategy

    class FSDPOnCPU(base):
        def _setup_model(self, model):
            if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
                return model
            device, mixed_precision = DEVICE, self.mixed_precision_config
            options = {"sharding_strategy": self.sharding_strategy, "mixed_precision": mixed_precision}
            return FullyShardedDataParallel(model, device_id=device, **options, **self.kwargs)

    return FSDPOnCPU(process_group_backend=BACKEND, **options)


def fit(package, strategy, *callbacks, shard=None, precision="32-true", accumulate=1, steps=STEPS, **options):
    """Train, and return the whole weights."""
    pl = import_module(package)
    weights = {}

    class Save(pl.Callback):
        def on_train_end(self, trainer, pl_module):
            with FullyShardedDataParallel.summon_full_params(trainer.strategy.model):
                for name, parameter in gather(pl_module).items():
                    weights[name.replace("_fsdp_wrapped_module.", "")] = parameter.clone()

    manual = options.pop("manual", False)
    module = make_module(package, shard, manual, accumulate, **options.pop("module", {}))
    checkpoint, resumed = options.pop("checkpoint", None), options.pop("resumed", None)
    trainer = pl.Trainer(
        strategy=strategy,
        max_steps=steps,
        precision=precision,
        callbacks=[*callbacks, Save()],
        accumulate_grad_batches=1 if manual else accumulate,
        **{
            **QUIET,
            "accelerator": DEVICE.type,
            "devices": dist.get_world_size(),
            "use_distributed_sampler": False,
            **options,
        },
    )
    trainer.fit(module, ckpt_path=resumed)
    assert trainer.global_step == steps
    if checkpoint is not None:
        trainer.save_checkpoint(checkpoint)
    return {name.removeprefix("network."): weight for name, weight in weights.items()}


def wrap_in_configure_model(network, mesh, **options):
    """The network is FullyShardedDataParallel's, the LightningModule is not."""
    del mesh
    policy = ModuleWrapPolicy({nn.Linear})
    return FullyShardedDataParallel(network, device_id=DEVICE, use_orig_params=True, auto_wrap_policy=policy, **options)
