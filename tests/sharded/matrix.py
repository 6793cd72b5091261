"""Every sharding, mode, precision and optimizer: trained as by hand, or refused. Rows for `docs/sharding.md`."""

import itertools
from contextlib import nullcontext
from functools import partial
from importlib import import_module

import lightning
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

from lightning_znorm import ZNorm, attach
from lightning_znorm._lightning import MisconfigurationError
from tests.helpers import PACKAGES
from tests.matrix.trainings import DTYPES, OPTIMIZERS
from tests.sharded import fitting, training
from tests.sharded.ranks import on
from tests.sharded.training import STEPS, compare_changes, gather, make_batch, make_network

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true")
SCALE = 16.0  # with which no gradient of these trainings overflows
FABRICS = {"lightning.pytorch": "lightning.fabric", "pytorch_lightning": "lightning_fabric"}


def make_optimizer(name):
    kind, options = OPTIMIZERS[name]
    return lambda parameters: kind([*parameters], **options)


def by_hand(optimizer, accumulate):
    kind, options = OPTIMIZERS[optimizer]
    options = {**options, "foreach": False, "fused": False}
    return training.train_by_hand(
        training.znorm(), accumulate=accumulate, optimizer=lambda parameters: kind([*parameters], **options)
    )


def precision_of(package, precision, is_flat=False):
    """Arguments of a Trainer or of Fabric; the flag 16-mixed is only for GPUs."""
    if precision != "16-mixed":
        return {"precision": precision}
    plugins = import_module(f"{package}.plugins")
    if is_flat:
        plugin = plugins.FSDPPrecision(precision)
        plugin.scaler = ShardedGradScaler(device="cpu", init_scale=SCALE)
    else:
        plugin = plugins.MixedPrecision(precision, "cpu", torch.amp.GradScaler("cpu", init_scale=SCALE))
    return {"precision": None, "plugins": [plugin]}


def in_a_trainer(shard, make_strategy, package, precision, optimizer, **options):
    strategy = make_strategy(package)
    is_flat = "FSDP" in type(strategy).__name__
    if is_flat and options.get("manual"):
        mixed = import_module(f"{package}.plugins").FSDPPrecision(precision).mixed_precision_config
        shard = partial(fitting.wrap_in_configure_model, mixed_precision=mixed)
    module = {"optimizer": make_optimizer(optimizer)}
    arguments = precision_of(package, precision, is_flat)
    return fitting.fit(package, strategy, ZNorm(), shard=shard, module=module, **arguments, **options)


def in_a_loop(shard, package, precision, optimizer):
    del package
    dtype, is_true = DTYPES[precision], precision.endswith("true")
    network = make_network()
    sharding = shard(network.to(dtype) if is_true else network)
    stepper = make_optimizer(optimizer)(network.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, enabled=precision == "16-mixed")
    handle = attach(stepper, ZNorm(), network)
    for step in range(STEPS):
        inputs, targets = (tensor.to(dtype) if is_true else tensor for tensor in sharding.share_of(make_batch(step)))
        stepper.zero_grad()
        with nullcontext() if is_true else torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = training.loss_of(network, inputs, targets)
        scaler.scale(loss).backward()
        scaler.step(stepper)
        scaler.update()
    assert handle.step == STEPS
    handle.remove()
    return gather(network)


def in_fabric(shard, sizes, package, precision, optimizer):
    package = FABRICS[package]
    strategies = import_module(f"{package}.strategies")
    if sizes is None:
        strategy = strategies.FSDPStrategy(process_group_backend="gloo")
    else:
        strategy = strategies.ModelParallelStrategy(
            lambda network, mesh: shard(network, mesh) or network,
            data_parallel_size=sizes[0],
            tensor_parallel_size=sizes[1],
        )
    fabric = import_module(package).Fabric(
        accelerator="cpu", devices=dist.get_world_size(), strategy=strategy, **precision_of(package, precision)
    )
    fabric.launch()
    network = fabric.setup_module(make_network())
    stepper = fabric.setup_optimizers(make_optimizer(optimizer)(network.parameters()))
    handle = attach(stepper, ZNorm(), network)
    mesh = strategy.device_mesh["data_parallel"]
    for step in range(STEPS):
        stepper.zero_grad()
        inputs, targets = training.Sharding(network, mesh.size(), mesh.get_local_rank()).share_of(make_batch(step))
        fabric.backward(training.loss_of(network, inputs, targets))
        stepper.step()
    handle.remove()
    return gather(network.module)


def fsdp_in_fabric(package, precision, optimizer):
    """Lightning takes FSDP on accelerators only; what `attach` is given there."""
    fabric = import_module(FABRICS[package])
    setup = fabric.Fabric(accelerator="cpu", devices=1)
    _, stepper = setup.setup(*(lambda n: (n, make_optimizer(optimizer)(n.parameters())))(make_network()))
    strategy = stepper._strategy
    strategy.__class__ = import_module(f"{FABRICS[package]}.strategies").FSDPStrategy
    strategy._precision = None
    del precision
    return attach(stepper, ZNorm())


def fsdp_in_a_loop(package, precision, optimizer):
    del package, precision
    network = FullyShardedDataParallel(make_network(), device_id=torch.device("cpu"), use_orig_params=True)
    return attach(make_optimizer(optimizer)(network.parameters()), ZNorm(), network)


def model_parallel(data, tensor):
    return lambda package: fitting.model_parallel(package, data, tensor)


def modes_of_a_trainer(name, *arguments):
    return {
        f"{name}, automatic": lambda *cell: in_a_trainer(*arguments, *cell),
        f"{name}, automatic, accumulating 2 batches": lambda *cell: in_a_trainer(*arguments, *cell, accumulate=2),
        f"{name}, manual": lambda *cell: in_a_trainer(*arguments, *cell, manual=True),
    }


def modes(count):
    if count == 2:
        return {
            **modes_of_a_trainer("FSDP2", fitting.shard_by_fsdp2, model_parallel(2, 1)),
            "FSDP2, `attach`, plain PyTorch": lambda *cell: in_a_loop(training.fsdp2_by_layer, *cell),
            "FSDP2, `attach`, Fabric": lambda *cell: in_fabric(fitting.shard_by_fsdp2, (2, 1), *cell),
            **modes_of_a_trainer("Tensor parallelism", fitting.shard_by_tp, model_parallel(1, 2)),
            "Tensor parallelism, `attach`, plain PyTorch": lambda *cell: in_a_loop(training.tensor_parallel, *cell),
            **modes_of_a_trainer("FSDP", None, fitting.fsdp),
            "FSDP, `attach`, plain PyTorch": fsdp_in_a_loop,
            "FSDP, `attach`, Fabric": fsdp_in_fabric,
        }
    mesh = init_device_mesh("cpu", (2, 2))
    return {
        **modes_of_a_trainer("FSDP2 over tensor parallelism", fitting.shard_by_both, model_parallel(2, 2)),
        "FSDP2 with copies (HSDP), `attach`, plain PyTorch": lambda *cell: in_a_loop(training.hsdp, *cell),
        "FSDP with copies (HYBRID_SHARD), automatic": lambda *cell: in_a_trainer(
            None, lambda package: fitting.fsdp(package, sharding_strategy="HYBRID_SHARD", device_mesh=mesh), *cell
        ),
    }


@on(2, 4)
def cells():
    rows = []
    versions = f"torch {torch.__version__.partition('+')[0]} and Lightning {lightning.__version__}"
    expected = {
        (optimizer, accumulate): by_hand(optimizer, accumulate)
        for optimizer in OPTIMIZERS
        for accumulate in (1, 2)
        if optimizer != "LBFGS"
    }
    for number, ((mode, train), precision, optimizer) in enumerate(
        itertools.product(modes(dist.get_world_size()).items(), PRECISIONS, OPTIMIZERS)
    ):
        row = {"mode": mode, "precision": precision, "optimizer": optimizer, "versions": versions}
        try:
            weights = train(PACKAGES[number % 2], precision, optimizer)
        except Exception as error:
            prefix = "" if isinstance(error, MisconfigurationError) else "PyTorch: "
            rows.append({**row, "outcome": "refused", "detail": f"{prefix}{error}".strip()})
            continue
        deviation = compare_changes(weights, expected[optimizer, 2 if "accumulating" in mode else 1])
        rows.append({**row, "outcome": "equal", "detail": f"{deviation:.1e}"})
    return rows
