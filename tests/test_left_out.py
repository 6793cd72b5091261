"""Under SGD, what ZNorm leaves out stays where it is at ZNorm's learning rate, and moves in a group of its own."""

import re

import pytest
import torch
from torch import nn

from lightning_znorm import ZNorm, attach
from tests.published import DOCS

RAW_RATE, RATE, STEPS = 0.03, 0.0003, 30


@pytest.fixture(scope="module")
def classifier():
    """The module of the documentation, without the training that follows it there."""
    page = (DOCS / "znorm.md").read_text()
    (source,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "class Classifier" in block]
    names = {}
    exec(source[: source.index("\ndata = ")], names)
    return names["Classifier"]


def move(model, optimizer, znorm, loss_of):
    """Train, and return by how much each parameter has changed, as root mean square."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    if znorm is not None:
        attach(optimizer, znorm, model)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
    return {
        name: (parameter.detach() - before[name]).square().mean().sqrt().item()
        for name, parameter in model.named_parameters()
    }


def classify(classifier, znorm, rate=None):
    """Return how far each parameter moves, at one rate or with the optimizer of the documentation."""
    torch.manual_seed(0)
    model = classifier()
    optimizer = (
        model.configure_optimizers() if rate is None else torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    )
    batch = torch.randn(64, 1, 8, 8), torch.randint(10, (64,))
    return move(model, optimizer, znorm, lambda model: model.training_step(batch))


VECTORS = ["network.1.weight", "network.1.bias", "network.4.bias"]  # a convolution's bias before BatchNorm gets noise


@pytest.mark.parametrize("arguments", [{"min_ndim": 2}, {"exclude": ["*.bias", "network.1.*"]}])
def test_vectors_that_are_left_out(classifier, arguments):
    plain = classify(classifier, None, RAW_RATE)
    everywhere = classify(classifier, ZNorm(), RATE)
    at_one_rate = classify(classifier, ZNorm(**arguments), RATE)
    with_groups = classify(classifier, ZNorm(**arguments))
    for name in VECTORS:
        assert at_one_rate[name] < 0.05 * plain[name]
        assert at_one_rate[name] < 0.1 * everywhere[name]
        assert 1 / 3 < with_groups[name] / plain[name] < 3
    for name in ("network.0.weight", "network.4.weight"):
        assert 1 / 3 < at_one_rate[name] / everywhere[name] < 3
        assert 1 / 3 < with_groups[name] / everywhere[name] < 3


def test_groups_of_the_documentation_hold_each_parameter_once(classifier):
    model = classifier()
    groups = model.configure_optimizers().param_groups
    assert {parameter for group in groups for parameter in group["params"]} == set(model.parameters())
    assert [group["lr"] for group in groups] == [RATE, RAW_RATE]


def test_a_tensor_of_one_element():
    def regress(znorm, rates):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        groups = [{"params": model[:2].parameters()}, {"params": [model[2].weight]}]
        groups.append({"params": [model[2].bias], "lr": rates[1]})
        inputs = torch.randn(64, 4)
        targets = inputs.sum(1, keepdim=True)
        optimizer = torch.optim.SGD(groups, lr=rates[0], momentum=0.9)
        return move(model, optimizer, znorm, lambda model: 0.1 * nn.functional.mse_loss(model(inputs), targets))[
            "2.bias"
        ]

    plain = regress(None, (RAW_RATE, RAW_RATE))
    assert regress(ZNorm(), (RATE, RATE)) < 0.1 * plain
    assert 1 / 3 < regress(ZNorm(), (RATE, RAW_RATE)) / plain < 3
