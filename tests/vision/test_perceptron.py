"""The deep perceptron: what its arguments do to the signal and to the gradient."""

import pytest
import torch
from torch import nn

from lightning_znorm.vision.perceptron import PerceptronClassifier, make_perceptron


def growth(depth, **arguments):
    """Return by which factor per layer the gradient of the features grows on its way from the last to the first."""
    torch.manual_seed(0)
    network, norms = make_perceptron(depth, width=256, **arguments), []
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.register_full_backward_hook(lambda module, inputs, outputs: norms.append(outputs[0].norm().item()))
    nn.functional.cross_entropy(network(torch.randn(256, 64)), torch.randint(10, (256,))).backward()
    assert len(norms) == depth  # the last layer first
    return (norms[-1] / norms[0]) ** (1 / (depth - 1))


def test_where_gradients_vanish_and_explode():
    assert growth(20, init="default") == pytest.approx(6**-0.5, rel=0.1)  # the variance of uniform weights is 1 / 3n
    assert growth(20) == pytest.approx(1, rel=0.1)
    assert growth(20, norm="layer") == pytest.approx(1, rel=0.1)
    assert growth(20, norm="batch") == pytest.approx(1.2, rel=0.1)  # Yang and others, arXiv 1902.08129
    assert growth(20, has_skips=True, norm="layer") == pytest.approx(1, rel=0.3)


def test_residual_network_explodes():
    """The variance of the features doubles with each layer, and so do the squares of all gradients."""
    norms = []
    for depth in (10, 20):
        torch.manual_seed(0)
        network = make_perceptron(depth, width=256, has_skips=True)
        network(torch.randn(256, 64)).square().mean().sqrt().backward()
        norms.append(network[1].weight.grad.norm().item())
    assert norms[1] / norms[0] == pytest.approx(2 ** (10 / 2), rel=0.3)


def test_plain_and_residual_layers_by_hand():
    images = torch.randn(5, 1, 8, 8)
    for has_skips in (False, True):
        for norm in (None, "layer"):
            network = make_perceptron(3, width=7, norm=norm, has_skips=has_skips)
            matrices = [module for module in network.modules() if isinstance(module, nn.Linear)]
            features = matrices[0](images.view(5, 64))
            for matrix in matrices[1:]:
                normed = nn.functional.layer_norm(features, (7,)) if norm and features.shape[1] == 7 else features
                result = matrix(normed.relu())
                features = features + result if has_skips and result.shape == features.shape else result
            torch.testing.assert_close(network(images), features)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 0}, "depth"),
        ({"width": 0}, "width"),
        ({"init": "xavier"}, "default"),
        ({"norm": "group"}, "layer"),
        ({"num_classes": 1}, "num_classes"),
        ({"optimizer": 0.1}, "optimizer"),
    ],
)
def test_arguments_that_are_wrong(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        PerceptronClassifier(**arguments)
