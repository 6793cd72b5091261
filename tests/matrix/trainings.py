"""The same short training in every mode, precision and with every optimizer, and by hand without the package."""

import copy
from contextlib import nullcontext
from importlib import import_module
from itertools import islice

import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_znorm import ZNorm, attach
from tests.helpers import make_trainer, precision_arguments, small_data, small_network, znorm_by_numpy

STEPS = 3
SCALE = 2.0**16  # a GradScaler's first
DTYPES = {
    "32-true": torch.float32,
    "bf16-mixed": torch.bfloat16,
    "16-mixed": torch.float16,
    "bf16-true": torch.bfloat16,
    "16-true": torch.float16,
    "64-true": torch.float64,
}
SGD = {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.01}
ADAM = {"lr": 0.01, "eps": 0.01}  # float16 has no room for the default eps
OPTIMIZERS = {
    "SGD": (torch.optim.SGD, {**SGD, "foreach": False}),
    "SGD, foreach": (torch.optim.SGD, {**SGD, "foreach": True}),
    "SGD, fused": (torch.optim.SGD, {**SGD, "fused": True}),
    "Adam": (torch.optim.Adam, {**ADAM, "foreach": False}),
    "Adam, foreach": (torch.optim.Adam, {**ADAM, "foreach": True}),
    "Adam, fused": (torch.optim.Adam, {**ADAM, "fused": True}),
    "LBFGS": (torch.optim.LBFGS, {"lr": 0.01}),
}


def by_hand(network, precision, optimizer, accumulate=1, loss_in_float32=False):
    """Plain PyTorch, the z-score by NumPy, the optimizer's slowest implementation."""
    kind, options = OPTIMIZERS[optimizer]
    options = {**options, "foreach": False, "fused": False}
    true, dtype = precision.endswith("true"), DTYPES[precision]
    network.to(dtype if true else torch.float32)
    stepper = kind(network.parameters(), **options)
    scale = SCALE if precision == "16-mixed" else 1.0
    batches = batches_of_a_training(accumulate)
    for _ in range(STEPS):
        stepper.zero_grad()
        for inputs, targets in islice(batches, accumulate):
            with nullcontext() if true else torch.autocast("cpu", dtype, dtype != torch.float32, cache_enabled=False):
                outputs = network(inputs.to(dtype) if true else inputs)
                if loss_in_float32:
                    outputs = outputs.float()
                loss = nn.functional.mse_loss(outputs, targets.to(outputs.dtype) if true else targets)
            (loss / accumulate * scale).backward()
        for parameter in network.parameters():
            normalized = torch.from_numpy(znorm_by_numpy(parameter.grad.double() / scale).astype("float64"))
            parameter.grad = normalized.to(parameter.dtype)
        stepper.step()
    return network


def batches_of_a_training(accumulate=1):
    return iter(DataLoader(small_data(4 * STEPS * accumulate), batch_size=4))


def make_optimizer(parameters, name):
    kind, options = OPTIMIZERS[name]
    return kind(list(parameters), **options)


def in_a_trainer(network, precision, optimizer, package, manual=False, closure=False, two=False, accumulate=1):
    """The callback in a Trainer."""
    pl = import_module(package)

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = network
            self.automatic_optimization = not manual

        def training_step(self, batch, batch_idx):
            if not manual:
                return self.loss(batch)
            optimizers = self.optimizers() if two else [self.optimizers()]
            if closure:
                optimizers[0].step(lambda: self.backpropagate(optimizers, batch))
            else:
                self.backpropagate(optimizers, batch)
                for stepper in optimizers:
                    stepper.step()
            return None

        def loss(self, batch):
            inputs, targets = batch
            return nn.functional.mse_loss(self.network(inputs), targets)

        def backpropagate(self, optimizers, batch):
            for stepper in optimizers:
                stepper.zero_grad()
            loss = self.loss(batch)
            self.manual_backward(loss)
            return loss

        def configure_optimizers(self):
            groups = [self.network[0], self.network[2]] if two else [self.network]
            return [make_optimizer(group.parameters(), optimizer) for group in groups]

        def train_dataloader(self):
            return DataLoader(small_data(4 * STEPS * accumulate), batch_size=4)

    trainer = make_trainer(
        package,
        max_epochs=1,
        accumulate_grad_batches=accumulate,
        callbacks=[ZNorm()],
        **precision_arguments(package, precision),
    )
    trainer.fit(Module())
    assert trainer.global_step == STEPS * (2 if two else 1)


def in_a_plain_loop(network, precision, optimizer, closure=False):
    """`attach` in a loop of plain PyTorch."""
    true, dtype = precision.endswith("true"), DTYPES[precision]
    network.to(dtype if true else torch.float32)
    stepper = make_optimizer(network.parameters(), optimizer)
    scaler = torch.amp.GradScaler("cpu", enabled=precision == "16-mixed")
    handle = attach(stepper, ZNorm())
    for inputs, targets in batches_of_a_training():

        def backpropagate(inputs=inputs, targets=targets):
            stepper.zero_grad()
            with nullcontext() if true else torch.autocast("cpu", dtype, dtype != torch.float32, cache_enabled=False):
                outputs = network(inputs.to(dtype) if true else inputs)
                loss = nn.functional.mse_loss(outputs, targets.to(outputs.dtype) if true else targets)
            scaler.scale(loss).backward()
            return loss

        if closure:
            scaler.step(stepper, closure=backpropagate) if scaler.is_enabled() else stepper.step(backpropagate)
        else:
            backpropagate()
            scaler.step(stepper)
        scaler.update()
    assert handle.step == STEPS


def in_fabric(network, precision, optimizer, package):
    """`attach` in Lightning Fabric."""
    fabric_package = {"lightning.pytorch": "lightning.fabric", "pytorch_lightning": "lightning_fabric"}[package]
    fabric = import_module(fabric_package).Fabric(
        accelerator="cpu",
        devices=1,
        **precision_arguments(fabric_package, precision),
    )
    model, stepper = fabric.setup(network, make_optimizer(network.parameters(), optimizer))
    handle = attach(stepper, ZNorm())
    for inputs, targets in batches_of_a_training():
        stepper.zero_grad()
        fabric.backward(nn.functional.mse_loss(model(inputs), targets))
        stepper.step()
    assert handle.step == STEPS


MODES = {
    "automatic": in_a_trainer,
    "automatic, accumulating 2 batches": lambda *a: in_a_trainer(*a, accumulate=2),
    "manual": lambda *a: in_a_trainer(*a, manual=True),
    "manual, with a closure": lambda *a: in_a_trainer(*a, manual=True, closure=True),
    "manual, two optimizers": lambda *a: in_a_trainer(*a, manual=True, two=True),
    "`attach`, plain PyTorch": lambda network, precision, optimizer, package: in_a_plain_loop(
        network, precision, optimizer
    ),
    "`attach`, plain PyTorch with a closure": lambda network, precision, optimizer, package: in_a_plain_loop(
        network, precision, optimizer, closure=True
    ),
    "`attach`, Fabric": in_fabric,
}


def train(mode, precision, optimizer, package):
    """Train once with the package and once by hand.

    Returns:
        Norm of the difference of the weights over norm of the change that training made, and the error with which the
        package, Lightning or PyTorch refused to train, if they did.

    """
    torch.manual_seed(7)
    network = small_network()
    first = copy.deepcopy(network)
    reference = copy.deepcopy(network)
    try:
        MODES[mode](network, precision, optimizer, package)
    except Exception as error:
        assert distance(network, first, precision) == 0, "refused only after a step"
        return None, error
    accumulate = 2 if "accumulating" in mode else 1
    by_hand(reference, precision, optimizer, accumulate, loss_in_float32="Fabric" in mode)
    return distance(network, reference, precision) / distance(reference, first, precision), None


def distance(one, other, precision):
    dtype = DTYPES[precision] if precision.endswith("true") else torch.float32
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    differences = [(a.detach().to(dtype).double() - b.detach().to(dtype).double()).flatten() for a, b in pairs]
    return torch.cat(differences).norm().item()
