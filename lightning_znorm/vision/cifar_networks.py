"""Networks for images of 32 x 32 pixels: those that residual learning was shown on, and VGG without its large head."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_znorm.errors import ArgumentValueError

__all__ = ["CifarNetwork", "CifarVGG"]

_WIDTHS = (16, 32, 64)
_VGG_WIDTHS = (64, 128, 256, 512, 512)
_VGG_CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class CifarNetwork(nn.Module):
    r"""A plain or a residual network for small images.

    A convolution, three stages of :math:`2n` convolutions of 3 x 3 with 16, 32 and 64 channels at full, half and
    quarter resolution, each followed by BatchNorm and ReLU, the mean over all pixels and a linear layer: :math:`6n + 2`
    layers. With skip connections, each pair of convolutions is added to its input, which is subsampled and padded with
    zeros where the shape changes, so that the skips have no parameters and both kinds have the same.

    Args:
        depth: Number of layers, :math:`6n + 2`: 20, 32, 44, 56, 110.
        num_classes: Number of classes.
        in_channels: Number of channels of the images.
        has_skips: Whether it is residual.
        has_norm: Whether there is BatchNorm. Without it, convolutions have biases, which begin at zero, and the signal
            and the gradient of a residual network grow from pair to pair.

    Raises:
        ValueError: If the depth is of another form.

    Shapes:
        Images ``(N, in_channels, H, W)``, logits ``(N, num_classes)``.

    Reference:
        He, Zhang, Ren and Sun, *Deep Residual Learning for Image Recognition*, arXiv 1512.03385, Sec. 4.2 (option A).

    Example::

        >>> for has_skips in (False, True):
        ...     print(sum(parameter.numel() for parameter in CifarNetwork(20, has_skips=has_skips).parameters()))
        269722
        269722

    """

    def __init__(
        self,
        depth: int,
        num_classes: int = 10,
        in_channels: int = 3,
        has_skips: bool = True,
        has_norm: bool = True,
    ) -> None:
        super().__init__()
        pairs, rest = divmod(depth - 2, 6)
        if rest or pairs < 1:
            raise ArgumentValueError(
                f"Expected the depth of a CIFAR network to be 6n + 2 (20, 32, 44, 56, 110, …), but got {depth!r}."
            )
        self.start = nn.Sequential(*_convolution(in_channels, _WIDTHS[0], has_norm=has_norm), nn.ReLU(inplace=True))
        self.blocks = nn.Sequential(*_blocks(pairs, has_skips, has_norm))
        self.head = nn.Linear(_WIDTHS[-1], num_classes)
        _initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.head(self.blocks(self.start(images)).mean(dim=(2, 3)))
        return logits


class Pair(nn.Module):
    """Two convolutions, with or without a skip connection past both.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the output.
        stride: Of the first convolution.
        has_skip: Whether the input is added.
        has_norm: Whether BatchNorm follows each.

    """

    def __init__(self, in_channels: int, channels: int, stride: int, has_skip: bool, has_norm: bool) -> None:
        super().__init__()
        self.stride, self.has_skip, self.new_channels = stride, has_skip, channels - in_channels
        self.body = nn.Sequential(
            *_convolution(in_channels, channels, stride, has_norm=has_norm),
            nn.ReLU(inplace=True),
            *_convolution(channels, channels, has_norm=has_norm),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the features after both."""
        features: Tensor = self.body(images)
        if self.has_skip:
            skipped = images[:, :, :: self.stride, :: self.stride]
            features = features + functional.pad(skipped, (0, 0, 0, 0, 0, self.new_channels))
        return torch.relu(features)


class CifarVGG(nn.Module):
    r"""A VGG for small images.

    Five stages of one to four convolutions of 3 x 3 with 64, 128, 256, 512 and 512 channels, each followed by BatchNorm
    and ReLU, max-pooling of 2 x 2 between the stages, the mean over all pixels and one linear layer in place of VGG's
    three.

    Args:
        depth: Number of layers of the VGG that it is made after: 11, 13, 16 or 19.
        num_classes: Number of classes.
        in_channels: Number of channels of the images.
        has_norm: Whether there is BatchNorm. Without it, convolutions have biases, which begin at zero.

    Raises:
        ValueError: If there is no VGG of this depth.

    Shapes:
        Images ``(N, in_channels, H, W)`` of 16 x 16 pixels at least, logits ``(N, num_classes)``.

    Reference:
        Simonyan and Zisserman, *Very Deep Convolutional Networks for Large-Scale Image Recognition*, arXiv 1409.1556.

    Example::

        >>> sum(parameter.numel() for parameter in CifarVGG(11).parameters())
        9228362

    """

    def __init__(self, depth: int, num_classes: int = 10, in_channels: int = 3, has_norm: bool = True) -> None:
        super().__init__()
        if depth not in _VGG_CONVOLUTIONS:
            known = ", ".join(map(str, _VGG_CONVOLUTIONS))
            raise ArgumentValueError(f"Expected the depth of a VGG to be one of {known}, but got {depth!r}.")
        layers: list[nn.Module] = []
        channels = in_channels
        for width, count in zip(_VGG_WIDTHS, _VGG_CONVOLUTIONS[depth], strict=True):
            layers += [nn.MaxPool2d(2)] if layers else []
            for _ in range(count):
                layers += [*_convolution(channels, width, has_norm=has_norm), nn.ReLU(inplace=True)]
                channels = width
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels, num_classes)
        _initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.head(self.features(images).mean(dim=(2, 3)))
        return logits


def _blocks(pairs: int, has_skips: bool, has_norm: bool) -> Iterator[Pair]:
    channels = _WIDTHS[0]
    for width in _WIDTHS:
        for _ in range(pairs):
            yield Pair(channels, width, stride=1 if width == channels else 2, has_skip=has_skips, has_norm=has_norm)
            channels = width


def _convolution(in_channels: int, channels: int, stride: int = 1, *, has_norm: bool) -> list[nn.Module]:
    convolution = nn.Conv2d(in_channels, channels, kernel_size=3, stride=stride, padding=1, bias=not has_norm)
    return [convolution, nn.BatchNorm2d(channels)] if has_norm else [convolution]


def _initialize(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
