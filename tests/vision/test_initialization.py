"""The first convolution of a network for 1, 3 or 4 channels: the network's own initialization."""

from math import sqrt

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn
from torchvision import models

from lightning_znorm.vision._first_convolution import find_first_convolution, first_convolution_channels
from lightning_znorm.vision.backbones import make_backbone
from lightning_znorm.vision.segmentation import make_segmenter


def he_fan_out(convolution):
    return sqrt(2 / (convolution.out_channels * convolution.weight[0, 0].numel()))


def he_fan_in(convolution):
    return sqrt(2 / convolution.weight[0].numel())


def lecun_fan_in(convolution):
    return sqrt(1 / convolution.weight[0].numel())


def assert_is_initialized_by(scheme, convolution, in_channels):
    """The sample's standard deviation, within four of its standard errors (of a normal distribution)."""
    weight = convolution.weight.detach()
    assert weight.shape[1] == in_channels
    assert weight.std().item() == pytest.approx(scheme(convolution), rel=4 / sqrt(2 * weight.numel()))


@pytest.mark.parametrize("in_channels", [1, 3, 4])
@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("resnet18", he_fan_out),
        ("mobilenet_v2", he_fan_out),
        ("densenet121", he_fan_in),
        ("squeezenet1_1", he_fan_in),
        ("cifar_resnet20", he_fan_out),
        ("pytorchcv:resnet20_cifar10", he_fan_in),
        ("timm:resnet18", he_fan_out),
    ],
)
def test_first_convolution_of_a_backbone(name, scheme, in_channels):
    convolution = find_first_convolution(make_backbone(name, 2, in_channels))
    assert_is_initialized_by(scheme, convolution, in_channels)


@pytest.mark.parametrize("in_channels", [1, pytest.param(3, marks=pytest.mark.long), 4])
def test_first_convolution_of_a_vision_transformer(in_channels):
    convolution = find_first_convolution(make_backbone("vit_b_32", 2, in_channels))
    assert_is_initialized_by(lecun_fan_in, convolution, in_channels)


@pytest.mark.parametrize("in_channels", [1, 3, 4])
def test_first_convolution_for_small_images(in_channels):
    convolution = make_backbone("resnet18", 2, in_channels, small_images=True).conv1
    assert convolution.kernel_size == (3, 3)
    assert_is_initialized_by(he_fan_out, convolution, in_channels)


@pytest.mark.parametrize("in_channels", [1, 3, 4])
@pytest.mark.parametrize(
    ("encoder", "scheme"),
    [("resnet18", he_fan_out), ("mobilenet_v2", he_fan_out), ("densenet121", he_fan_in), ("tu-resnet18", he_fan_out)],
)
def test_first_convolution_of_an_encoder(encoder, scheme, in_channels):
    convolution = find_first_convolution(make_segmenter("Unet", encoder, in_channels=in_channels).encoder)
    assert_is_initialized_by(scheme, convolution, in_channels)


@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
@pytest.mark.parametrize(
    "name",
    [
        *("convnext_tiny", "densenet121", "googlenet", "mobilenet_v2", "regnet_x_400mf", "squeezenet1_0", "swin_t"),
        *(
            pytest.param(name, marks=pytest.mark.long)
            for name in (
                *("alexnet", "efficientnet_b0", "inception_v3", "maxvit_t", "mnasnet0_5", "mobilenet_v3_small"),
                *("resnext50_32x4d", "shufflenet_v2_x0_5", "swin_v2_t", "vgg11_bn", "vit_b_32"),
            )
        ),
    ],
)
def test_nothing_but_the_first_convolution_changes(name):
    with torch.device("cpu" if name.startswith("regnet") else "meta"):  # RegNet computes its widths by tensors
        usual, other = (make_backbone(name, 10, in_channels) for in_channels in (3, 4))
    convolution = find_first_convolution(other)
    first = next(key for key, module in other.named_modules() if module is convolution)
    shapes = {key: value.shape for key, value in usual.state_dict().items()}
    assert [key for key, value in other.state_dict().items() if value.shape != shapes[key]] == [f"{first}.weight"]
    assert convolution.in_channels == convolution.weight.shape[1] == 4


def test_three_channels_are_what_the_libraries_make():
    """Bit for bit, and so are the random numbers that follow."""
    for ours, theirs in (
        (lambda: make_backbone("resnet18", 2), lambda: models.resnet18(num_classes=2)),
        (
            lambda: make_segmenter("Unet", "resnet18", in_channels=3),
            lambda: smp.Unet("resnet18", encoder_weights=None, in_channels=3, classes=1),
        ),
    ):
        torch.manual_seed(5)
        expected = [*theirs().state_dict().values(), torch.rand(3)]
        torch.manual_seed(5)
        result = [*ours().state_dict().values(), torch.rand(3)]
        assert all(torch.equal(left, right) for left, right in zip(result, expected, strict=True))


def test_a_segmenter_for_other_channels_has_otherwise_the_same_weights():
    torch.manual_seed(5)
    expected = smp.Unet("resnet18", encoder_weights=None, in_channels=1, classes=1).state_dict()
    torch.manual_seed(5)
    result = make_segmenter("Unet", "resnet18", in_channels=1).state_dict()
    assert [key for key in expected if not torch.equal(result[key], expected[key])] == ["encoder.conv1.weight"]


class TestFirstConvolutionChannels:
    def test_by_keyword(self):
        with first_convolution_channels(5):
            first, second = (nn.Conv2d(in_channels=3, out_channels=4, kernel_size=1, groups=1) for _ in range(2))
        assert (first.in_channels, first.weight.shape[1]) == (5, 5)
        assert second.in_channels == 3

    def test_ends_with_an_error_or_without_a_convolution(self):
        original = nn.Conv2d.__init__
        with first_convolution_channels(5):
            nn.Linear(3, 3)
        assert nn.Conv2d.__init__ is original
        with pytest.raises(RuntimeError, match="before"), first_convolution_channels(5):
            raise RuntimeError("before the first convolution")
        assert nn.Conv2d.__init__ is original
        with pytest.raises(TypeError), first_convolution_channels(5):
            nn.Conv2d(3, 4)
        assert nn.Conv2d.__init__ is original
