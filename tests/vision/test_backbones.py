import math
import sys

import pytest
import torch
from torch import nn
from torchvision import models

from lightning_znorm.vision import ImageClassifier
from lightning_znorm.vision.backbones import make_backbone
from lightning_znorm.vision.cifar_networks import CifarNetwork, CifarVGG
from lightning_znorm.vision.segmentation import make_segmenter


def size(model):
    return sum(parameter.numel() for parameter in model.parameters())


class Block(nn.Module):
    """A residual block of He et al., option A, written from the paper."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.stride, self.zeros = stride, outputs - inputs

    def forward(self, x):
        y = self.second_norm(self.second(torch.relu(self.first_norm(self.first(x)))))
        x = x[:, :, :: self.stride, :: self.stride]
        return torch.relu(y + torch.cat([x, x.new_zeros(len(x), self.zeros, *x.shape[2:])], dim=1))


def residual_network(depth):
    blocks, inputs = [], 16
    for outputs in (16, 32, 64):
        for _ in range((depth - 2) // 6):
            blocks.append(Block(inputs, outputs, 1 if inputs == outputs else 2))
            inputs = outputs
    start = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*start, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class TestCifarNetwork:
    @pytest.mark.parametrize(
        ("depth", "parameters"), [(20, 269722), (32, 464154), (44, 658586), (56, 853018), (110, 1727962)]
    )
    def test_parameters_are_those_of_the_paper(self, depth, parameters):
        """Table 6 there: 0.27, 0.46, 0.66, 0.85 and 1.7 million."""
        plain, residual = (CifarNetwork(depth, has_skips=has_skips) for has_skips in (False, True))
        assert size(plain) == size(residual) == size(residual_network(depth)) == parameters
        layers = [module for module in residual.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
        assert len(layers) == depth

    @pytest.mark.parametrize("is_training", [True, False])
    def test_is_the_network_of_the_paper(self, is_training):
        network, expected = CifarNetwork(20), residual_network(20)
        expected.load_state_dict(dict(zip(expected.state_dict(), network.state_dict().values(), strict=True)))
        images = torch.randn(3, 3, 32, 32)
        with torch.no_grad():
            network(images)  # moves the running statistics from 0 and 1
            expected(images)
            torch.testing.assert_close(network.train(is_training)(images), expected.train(is_training)(images))

    def test_every_convolution_is_initialized_by_fan_out(self):
        for module in CifarNetwork(20).modules():
            if isinstance(module, nn.Conv2d):
                std = (2 / (9 * module.out_channels)) ** 0.5
                assert module.weight.std().item() == pytest.approx(std, rel=4 / (2 * module.weight.numel()) ** 0.5)

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


class TestCifarVGG:
    @pytest.mark.parametrize("depth", [11, 13, 16, 19])
    def test_has_the_convolutions_of_torchvision(self, depth):
        with torch.device("meta"):
            ours, theirs = CifarVGG(depth), getattr(models, f"vgg{depth}_bn")()
        shapes = [
            [tuple(module.weight.shape) for module in network.modules() if isinstance(module, nn.Conv2d)]
            for network in (ours, theirs)
        ]
        assert shapes[0] == shapes[1]
        assert size(ours) == sum(math.prod(shape) + 2 * shape[0] for shape in shapes[1]) + 513 * 10

    @pytest.mark.parametrize("depth", [0, 12, 20])
    def test_wrong_depth(self, depth):
        with pytest.raises(ValueError, match=f"11, 13, 16, 19, but got {depth}"):
            CifarVGG(depth)

    @pytest.mark.parametrize("pixels", [16, 32])
    def test_images(self, pixels):
        assert CifarVGG(11)(torch.randn(2, 3, pixels, pixels)).shape == (2, 10)


@pytest.mark.parametrize("name", ["cifar_plain20", "cifar_resnet20", "cifar_vgg11"])
def test_without_norm(name):
    network = make_backbone(f"{name}_nonorm", 10)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert all(torch.equal(module.bias, torch.zeros_like(module.bias)) for module in convolutions)
    with_norm = [module for module in make_backbone(name, 10).modules() if isinstance(module, nn.Conv2d)]
    assert all(module.bias is None for module in with_norm)
    assert [tuple(module.weight.shape) for module in convolutions] == [
        tuple(module.weight.shape) for module in with_norm
    ]


def test_without_norm_a_residual_network_explodes_and_a_plain_one_does_not():
    """Each pair adds a signal of the size of its input, so that the variance doubles nine times."""
    torch.manual_seed(0)
    images = torch.randn(64, 3, 32, 32)
    sizes = {}
    for name in ("cifar_plain20_nonorm", "cifar_resnet20_nonorm"):
        network = make_backbone(name, 10)
        sizes[name] = (network.blocks(network.start(images)).std() / network.start(images).std()).item()
    assert sizes["cifar_plain20_nonorm"] < 2 < 10 < sizes["cifar_resnet20_nonorm"]


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize(
    "name",
    [
        "cifar_resnet20",
        "cifar_plain20_nonorm",
        "cifar_vgg11",
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
    sizes = {"resnet20": 272474, "resnet56": 855770, "resnet110": 1730714, "densenet40_k12": 599050}
    for name, parameters in sizes.items():
        assert size(make_backbone(f"pytorchcv:{name}_cifar10", 10)) == parameters
    assert size(make_segmenter("Unet", "resnet34", in_channels=3)) == pytest.approx(24.4e6, rel=0.002)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "timm:resnet_20"}, r"`backbone`.*'timm:resnet_20'. Did you mean 'timm:resnet"),
        ({"name": "pytorchcv:resnet20_cifar"}, r"Did you mean 'pytorchcv:resnet20_cifar10"),
        ({"name": "cifar_resnet21"}, r"6n \+ 2"),
        ({"name": "cifar_vgg20"}, r"11, 13, 16, 19"),
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
