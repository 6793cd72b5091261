"""A Trainer's checkpoint of two ranks, resumed by three and by one."""

import torch.distributed as dist

from lightning_znorm import ZNorm
from tests.helpers import PACKAGES
from tests.sharded import training
from tests.sharded.fitting import fit, fsdp, model_parallel, shard_by_fsdp2
from tests.sharded.ranks import on
from tests.sharded.training import STEPS, check_weights

# Lightning resumes with the first batch of an epoch
BY_EPOCH = {"module": {"per_epoch": 2}, "reload_dataloaders_every_n_epochs": 1}


def strategies():
    yield "FSDP2", PACKAGES[0], model_parallel(PACKAGES[0], dist.get_world_size(), 1), shard_by_fsdp2
    if dist.get_world_size() > 1:  # FullyShardedDataParallel saves no shards of one rank
        yield "FSDP", PACKAGES[1], fsdp(PACKAGES[1], state_dict_type="sharded"), None


@on(2)
def saved():
    for name, package, strategy, shard in strategies():
        fit(package, strategy, ZNorm(), shard=shard, steps=2, checkpoint=f"{name}.ckpt", **BY_EPOCH)


@on(1, 3)
def resumed():
    for name, package, strategy, shard in strategies():
        weights = fit(package, strategy, ZNorm(), shard=shard, steps=STEPS, resumed=f"{name}.ckpt", **BY_EPOCH)
        check_weights(weights, training.train_by_hand(training.znorm()))
