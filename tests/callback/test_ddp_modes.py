"""Two forked processes under gloo, in the ways in which DDP can be used; against one process on the joined batch."""

import copy
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer

from lightning_znorm import ZNorm, attach
from tests.helpers import FIRST_PACKAGE, PACKAGES, make_module, make_trainer, precision_arguments, small_network

pytestmark = pytest.mark.slow
STEPS = 4


def adam(parameters, **options):
    return torch.optim.Adam(parameters, lr=0.01, eps=1e-3, **options)


def save(network):
    torch.save(network.state_dict(), f"rank{torch.distributed.get_rank()}.pt")


def make_trainer_with(package, callback, world_size, start_method="fork", precision="32-true", trainer=None, **options):
    class Save(import_module(package).Callback):
        def on_train_end(self, trainer, pl_module):
            if trainer.world_size > 1:
                save(pl_module.network)

    arguments = {"max_steps": STEPS, "callbacks": [callback, Save()], **(trainer or {})}
    if world_size > 1:
        strategy = import_module(f"{package}.strategies").DDPStrategy
        arguments["strategy"] = strategy(process_group_backend="gloo", start_method=start_method, **options)
    arguments |= precision_arguments(package, precision)
    return make_trainer(package, devices=world_size, **arguments)


def saved_weights():
    ranks = [torch.load(f"rank{rank}.pt") for rank in (0, 1)]
    assert all(torch.equal(ranks[0][name], ranks[1][name]) for name in ranks[0])
    return ranks[0]


def assert_ranks_equal_one_process(
    package="lightning.pytorch",
    make_network=small_network,
    change_module=lambda module: None,
    optimizer=adam,
    bound=1e-6,
    callback=None,
    **options,
):
    torch.manual_seed(3)
    network = make_network()
    first, alone = copy.deepcopy(network), copy.deepcopy(network)
    for world_size, trained in ((2, network), (1, alone)):
        # the sampler deals the samples out in turn, so that two batches of four are the one batch of eight
        module = make_module(package, trained, optimizer, batch_size=8 // world_size)
        change_module(module)
        make_trainer_with(package, callback or ZNorm(), world_size, **options).fit(module)
    weights = saved_weights()
    for name, expected in alone.state_dict().items():
        torch.testing.assert_close(weights[name], expected, rtol=0, atol=bound)
    assert not all(torch.equal(weights[name], value) for name, value in first.state_dict().items())


@pytest.mark.parametrize("package", PACKAGES)
def test_fork(package):
    assert_ranks_equal_one_process(package)


class Paths(nn.Module):
    """In every second step one path is without a gradient; a third layer always is."""

    def __init__(self):
        super().__init__()
        self.paths = nn.ModuleList([nn.Linear(6, 3), nn.Linear(6, 3)])
        self.never = nn.Linear(6, 3)
        self.calls = 0

    def forward(self, inputs):
        self.calls += 1
        return self.paths[self.calls % 2](inputs)


@pytest.mark.parametrize("package", FIRST_PACKAGE)
@pytest.mark.parametrize("view", [False, True])
def test_unused_parameters(package, view):
    assert_ranks_equal_one_process(
        package, make_network=Paths, find_unused_parameters=True, gradient_as_bucket_view=view
    )


@pytest.mark.parametrize("options", [{}, {"gradient_as_bucket_view": True}], ids=str)
def test_accumulation_without_synchronization(options):
    """Lightning accumulates inside `no_sync`."""
    assert_ranks_equal_one_process(trainer={"accumulate_grad_batches": 2, "max_steps": 2}, **options)


def manual_with_no_sync(module):
    module.automatic_optimization = False

    def training_step(batch, batch_idx):
        optimizer = module.optimizers()
        last = batch_idx % 2 == 1

        def closure():
            module.manual_backward(nn.functional.mse_loss(module.network(batch[0]), batch[1]) / 2)

        with optimizer.toggle_model(sync_grad=last):
            if last:
                optimizer.step(closure)
                optimizer.zero_grad()
            else:
                closure()

    module.training_step = training_step


@pytest.mark.parametrize("package", FIRST_PACKAGE)
def test_manual_optimization_with_no_sync(package):
    assert_ranks_equal_one_process(package, change_module=manual_with_no_sync, trainer={"max_steps": 2})


def zero_redundancy(parameters):
    """The optimizer's state sharded over the ranks, its gradients whole."""
    if not torch.distributed.is_initialized():
        return adam(parameters)
    return ZeroRedundancyOptimizer(parameters, torch.optim.Adam, lr=0.01, eps=1e-3)


def test_zero_redundancy_optimizer():
    assert_ranks_equal_one_process(optimizer=zero_redundancy)


@pytest.mark.parametrize("min_ndim", [0, 2])
@pytest.mark.parametrize("options", [{"gradient_as_bucket_view": True}, {"static_graph": True}], ids=str)
def test_options_of_ddp(options, min_ndim):
    assert_ranks_equal_one_process(callback=ZNorm(min_ndim=min_ndim), **options)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed", "bf16-true"])
def test_precision(precision, fused):
    bound = 1e-2 if precision == "16-mixed" else 5e-2  # activations of other batches round otherwise
    assert_ranks_equal_one_process(precision=precision, optimizer=partial(adam, fused=fused), bound=bound)


def break_on_one_rank(module, at):
    """A NaN that the other rank does not see, as a parameter that DDP ignores would have it."""
    after_backward = module.on_after_backward

    def on_after_backward():
        after_backward()
        if module.trainer.global_step in at and module.trainer.global_rank == 1:
            module.network[2].bias.grad[0] = torch.nan

    module.on_after_backward = on_after_backward


@pytest.mark.parametrize("package", FIRST_PACKAGE)
def test_ranks_skip_together(package):
    torch.manual_seed(3)
    network = small_network()
    module = make_module(package, network, adam)
    break_on_one_rank(module, {1})

    class Look(import_module(package).Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            record = (trainer.callbacks[0].skipped_steps, pl_module.network[0].weight.detach().clone())
            torch.save(record, f"step{trainer.global_step}rank{trainer.global_rank}.pt")

    trainer = make_trainer_with(package, ZNorm(nonfinite="skip"), 2)
    trainer.callbacks.append(Look())
    trainer.fit(module)
    saved_weights()
    for rank in (0, 1):
        steps = [torch.load(f"step{step}rank{rank}.pt") for step in (1, 2, 3)]
        assert [skipped for skipped, _ in steps] == [0, 1, 1]
        assert torch.equal(steps[0][1], steps[1][1])
        assert not torch.equal(steps[1][1], steps[2][1])


class Reporting(ZNorm):
    """Waits for the other rank after an error, which ends only if that rank has one, too."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        try:
            super().on_before_optimizer_step(trainer, pl_module, optimizer)
        except RuntimeError as error:
            Path(f"error{trainer.global_rank}.txt").write_text(str(error))
            torch.distributed.barrier()
            raise


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"nonfinite": "raise"}, r"`network\.2\.bias` has an inf or NaN"),
        ({"nonfinite": "skip", "max_skips": 1}, r"`network\.2\.bias` has an inf or NaN, and the 1 steps before"),
    ],
)
def test_ranks_raise_together_and_none_hangs(arguments, message):
    module = make_module("lightning.pytorch", small_network(), adam)
    break_on_one_rank(module, {1, 2})
    with pytest.raises(Exception, match=message):
        make_trainer_with("lightning.pytorch", Reporting(**arguments), 2).fit(module)
    assert Path("error0.txt").read_text() == Path("error1.txt").read_text()


def train_with_fabric(fabric, nonfinite):
    torch.manual_seed(3)
    network = small_network()
    model, optimizer = fabric.setup(network, adam(network.parameters()))
    handle = attach(optimizer, ZNorm(nonfinite=nonfinite, exclude="0.bias"), model)
    for step in range(STEPS):
        inputs = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        fabric.backward(model(inputs[fabric.global_rank :: fabric.world_size]).square().mean())
        if nonfinite == "skip" and step == 2 and fabric.global_rank == 1:
            network[2].bias.grad[0] = torch.nan
        optimizer.step()
    assert handle.skipped_steps == (1 if nonfinite == "skip" else 0)
    if fabric.world_size == 1:
        return network
    save(network)
    return None


@pytest.mark.parametrize("package", ["lightning.fabric", "lightning_fabric"])
def test_attach_in_fabric(package):
    make = import_module(package).Fabric
    make(accelerator="cpu", devices=2, strategy="ddp_fork").launch(train_with_fabric, "propagate")
    alone = train_with_fabric(make(accelerator="cpu", devices=1), "propagate")
    for name, value in saved_weights().items():
        torch.testing.assert_close(value, alone.state_dict()[name], rtol=0, atol=1e-6)


def test_attached_ranks_skip_together():
    make = import_module("lightning.fabric").Fabric
    make(accelerator="cpu", devices=2, strategy="ddp_fork").launch(train_with_fabric, "skip")
    saved_weights()
