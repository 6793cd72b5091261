import sys

import pytest
import torch
from torch import nn

from lightning_znorm.vision import ImageClassifier
from lightning_znorm.vision.backbones import make_backbone
from lightning_znorm.vision.cifar_networks import CifarNetwork


def size(model):
    return sum(parameter.numel() for parameter in model.parameters())


class TestCifarNetwork:
    @pytest.mark.parametrize(("depth", "parameters"), [(20, 0.27e6), (32, 0.46e6), (56, 0.85e6), (110, 1.7e6)])
    def test_parameters_are_those_of_the_paper(self, depth, parameters):
        plain, residual = (CifarNetwork(depth, has_skips=has_skips) for has_skips in (False, True))
        assert size(plain) == size(residual) == pytest.approx(parameters, rel=0.025)
        layers = [module for module in residual.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
        assert len(layers) == depth

    def test_resolutions(self):
        shapes = []
        network = CifarNetwork(20)
        for block in network.blocks:
            block.register_forward_hook(lambda module, args, output: shapes.append(tuple(output.shape[1:])))
        assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
        assert shapes == [(16, 32, 32)] * 3 + [(32, 16, 16)] * 3 + [(64, 8, 8)] * 3

    @pytest.mark.parametrize("stride_and_channels", [(1, 16), (2, 32)])
    def test_skip_passes_the_input(self, stride_and_channels):
        """With the convolutions at zero, a residual pair is the identity, subsampled and padded by channels of zero."""
        network = CifarNetwork(20).eval()
        stride, channels = stride_and_channels
        block = next(b for b in network.blocks if b.stride == stride and b.body[0].out_channels == channels)
        for module in block.body:
            if isinstance(module, nn.Conv2d):
                nn.init.zeros_(module.weight)
        images = torch.rand(2, 16, 8, 8)
        expected = torch.zeros(2, channels, 8 // stride, 8 // stride)
        expected[:, :16] = images[:, :, ::stride, ::stride]
        assert torch.equal(block(images), expected)
        block.has_skip = False
        assert torch.equal(block(images), torch.zeros_like(expected))

    def test_same_weights_for_both_from_one_seed(self):
        states = []
        for has_skips in (False, True):
            torch.manual_seed(1)
            states.append(CifarNetwork(20, has_skips=has_skips).state_dict())
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())

    @pytest.mark.parametrize("depth", [0, 2, 18, 21])
    def test_wrong_depth(self, depth):
        with pytest.raises(ValueError, match=rf"6n \+ 2 .*but got {depth}"):
            CifarNetwork(depth)


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize(
    "name",
    [
        "cifar_resnet20",
        "cifar_plain20",
        "timm:resnet10t",
        "pytorchcv:resnet20_cifar10",
        "pytorchcv:densenet40_k12_cifar10",
    ],
)
def test_sources(name, in_channels):
    model = ImageClassifier(name, num_classes=4, in_channels=in_channels)
    logits = model(torch.randn(2, in_channels, 32, 32))
    assert logits.shape == (2, 4)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_recipes_name_what_the_paper_trains():
    for name, parameters in (("resnet20", 0.27e6), ("resnet56", 0.86e6), ("resnet110", 1.73e6)):
        assert size(make_backbone(f"pytorchcv:{name}_cifar10", 10)) == pytest.approx(parameters, rel=0.02)
    assert size(make_backbone("pytorchcv:densenet40_k12_cifar10", 10)) == pytest.approx(0.6e6, rel=0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "timm:resnet_20"}, r"`backbone`.*'timm:resnet_20'. Did you mean 'timm:resnet"),
        ({"name": "pytorchcv:resnet20_cifar"}, r"Did you mean 'pytorchcv:resnet20_cifar10"),
        ({"name": "cifar_resnet21"}, r"6n \+ 2"),
        ({"name": "huggingface:resnet18"}, r"`backbone`.*'huggingface:resnet18'"),
        ({"name": "timm:resnet10t", "weights": "V1"}, r"`weights` .*'V1'.*timm:resnet18.a1_in1k"),
        ({"name": "cifar_resnet20", "weights": "DEFAULT"}, r"`weights` to be None .*'cifar_resnet20'"),
        ({"name": "pytorchcv:resnet20_cifar10", "weights": "DEFAULT"}, r"`weights` to be None .*pytorchcv"),
        ({"name": "timm:resnet10t", "small_images": True}, r"`small_images` .*'timm:resnet10t'"),
    ],
)
def test_wrong_names(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_backbone(num_classes=10, **arguments)


def test_missing_pytorchcv(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorchcv", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "lightning-znorm\[paper\]"'):
        make_backbone("pytorchcv:resnet20_cifar10", 10)
