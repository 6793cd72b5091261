"""What `attach` refuses, and when."""

import copy

import pytest
import torch
from pytorch_optimizer.optimizer.fp16 import SafeFP16Optimizer
from torch import nn

from lightning_znorm import ZNorm, attach
from lightning_znorm._lightning import MisconfigurationError
from tests.attach.helpers import backpropagate, sgd
from tests.helpers import small_network


def test_an_optimizer_that_evaluates_its_closure_twice():
    class Twice(torch.optim.SGD):
        def step(self, closure=None):
            closure()
            return super().step(closure)

    network = small_network()
    before = copy.deepcopy(network)
    optimizer = Twice(network.parameters(), lr=0.1)
    attach(optimizer, ZNorm())
    with pytest.raises(MisconfigurationError, match=r"optimizer `Twice`.*several times per step"):
        optimizer.step(lambda: backpropagate(network))
    assert torch.equal(before[0].weight, network[0].weight)


def test_lbfgs():
    optimizer = torch.optim.LBFGS(small_network().parameters())
    with pytest.raises(MisconfigurationError, match="optimizer `LBFGS`"):
        attach(optimizer, ZNorm())
    assert not optimizer._optimizer_step_pre_hooks


OPTIMIZER, TRANSFORM = "a `torch.optim.Optimizer`", "a transform such as `ZNorm()`"
ORDER = "The order is `attach(optimizer, transform, module)`."


@pytest.mark.parametrize(
    ("optimizer", "transform", "module", "message"),
    [
        ("SGD", ZNorm(), None, f"`optimizer` to be {OPTIMIZER}, but got 'SGD'. {ORDER}"),
        (
            small_network(),
            ZNorm(),
            None,
            f"`optimizer` to be {OPTIMIZER}, but got an object of type `Sequential`. {ORDER}",
        ),
        (
            [sgd(small_network())],
            ZNorm(),
            None,
            f"`optimizer` to be {OPTIMIZER}, but got an object of type `list`. {ORDER}",
        ),
        (
            ZNorm(),
            sgd(small_network()),
            None,
            f"`transform` to be {TRANSFORM}, but got an object of type `SGD`. {ORDER}",
        ),
        (
            sgd(small_network()),
            small_network(),
            ZNorm(),
            f"`transform` to be {TRANSFORM}, but got an object of type `Sequential`. {ORDER}",
        ),
        (
            sgd(small_network()),
            ZNorm,
            None,
            f"`transform` to be {TRANSFORM}, but got the class `ZNorm`. Create one: `ZNorm()`.",
        ),
        (sgd(small_network()), ZNorm(), "model", f"`module` to be a `torch.nn.Module`, but got 'model'. {ORDER}"),
    ],
)
def test_arguments_of_wrong_types(optimizer, transform, module, message):
    with pytest.raises(TypeError) as caught:
        attach(optimizer, transform, module)
    assert str(caught.value) == f"Expected argument {message}"


def test_an_optimizer_that_cannot_be_hooked():
    class Hollow(torch.optim.Optimizer):
        def __init__(self, optimizer):
            self.optimizer = optimizer

        def step(self, closure=None):
            return self.optimizer.step(closure)

    optimizer = SafeFP16Optimizer(sgd(small_network()))
    message = (
        "^Nothing can be attached to the optimizer `{}`, which .*If it wraps another optimizer, attach to that one.$"
    )
    with pytest.raises(TypeError, match=message.format("SafeFP16Optimizer")):
        attach(optimizer, ZNorm())
    with pytest.raises(TypeError, match=message.format("Hollow")):
        attach(Hollow(sgd(small_network())), ZNorm())
    attach(optimizer, ZNorm(enabled=False))
    attach(optimizer.optimizer, ZNorm())


def test_attached_twice():
    network = small_network()
    optimizer = sgd(network)
    handle = attach(optimizer, ZNorm())
    with pytest.raises(MisconfigurationError, match="`ZNorm` is attached to the optimizer `SGD` already"):
        attach(optimizer, ZNorm(min_ndim=2))
    handle.remove()
    attach(optimizer, ZNorm())


def test_exclude_without_names():
    with pytest.raises(TypeError, match=r"`exclude` of `ZNorm` needs the names.*`module=` to `attach`.*named_param"):
        attach(sgd(small_network()), ZNorm(exclude=["*.bias"]))


def test_exclude_that_matches_nothing():
    with pytest.raises(MisconfigurationError, match=r"the pattern 'encoder\.\*' matches no parameter.*0\.weight"):
        attach(sgd(small_network()), ZNorm(exclude="encoder.*"), small_network())


def test_sparse_and_complex_parameters():
    embedding = nn.Embedding(4, 2, sparse=True)
    optimizer = sgd(embedding)
    with pytest.raises(MisconfigurationError, match=r"sparse gradient of parameter `weight`.*exclude=\['weight'\]"):
        attach(optimizer, ZNorm(), embedding)
    handle = attach(optimizer, ZNorm())  # without the module it shows in the first step
    embedding(torch.tensor([1])).sum().backward()
    before = embedding.weight.detach().clone()
    with pytest.raises(TypeError, match=r"`param_groups\[0\]\['params'\]\[0\]` is sparse"):
        optimizer.step()
    assert torch.equal(embedding.weight, before)
    handle.remove()
    attach(optimizer, ZNorm(exclude="weight"), embedding)
    optimizer.step()

    numbers = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    with pytest.raises(MisconfigurationError, match="complex gradient"):
        attach(torch.optim.SGD([numbers], lr=0.1), ZNorm())


def test_parameters_that_fsdp_has_flattened():
    network = small_network()
    network[0].weight._fsdp_flattened = True
    with pytest.raises(MisconfigurationError, match="FullyShardedDataParallel"):
        attach(sgd(network), ZNorm())
    network = small_network()
    optimizer = sgd(network)
    attach(optimizer, ZNorm())
    network[0].weight._fsdp_flattened = True
    backpropagate(network)
    with pytest.raises(MisconfigurationError, match="FullyShardedDataParallel"):
        optimizer.step()


@pytest.mark.parametrize("value", ["skip", "raise"])
def test_cuda_graphs_cannot_capture_what_waits_for_the_device(monkeypatch, value):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    network = small_network()
    optimizer = sgd(network)
    with attach(optimizer, ZNorm(nonfinite=value)):
        backpropagate(network, factor=torch.nan)  # not looked at before the refusal
        with pytest.raises(MisconfigurationError, match=rf"`ZNorm\(nonfinite='{value}'\)`.*CUDA graph"):
            optimizer.step()
    with attach(optimizer, ZNorm()):
        optimizer.step()
