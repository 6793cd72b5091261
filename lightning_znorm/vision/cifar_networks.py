"""The networks for images of 32 x 32 pixels that residual learning was shown on, with and without skip connections."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_znorm.errors import ArgumentValueError

__all__ = ["CifarNetwork"]

_WIDTHS = (16, 32, 64)


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

    def __init__(self, depth: int, num_classes: int = 10, in_channels: int = 3, has_skips: bool = True) -> None:
        super().__init__()
        pairs, rest = divmod(depth - 2, 6)
        if rest or pairs < 1:
            raise ArgumentValueError(
                f"Expected the depth of a CIFAR network to be 6n + 2 (20, 32, 44, 56, 110, …), but got {depth!r}."
            )
        self.start = nn.Sequential(*_convolution(in_channels, _WIDTHS[0], 1), nn.ReLU(inplace=True))
        self.blocks = nn.Sequential(*_blocks(pairs, has_skips))
        self.head = nn.Linear(_WIDTHS[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

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

    """

    def __init__(self, in_channels: int, channels: int, stride: int, has_skip: bool) -> None:
        super().__init__()
        self.stride, self.has_skip, self.new_channels = stride, has_skip, channels - in_channels
        self.body = nn.Sequential(
            *_convolution(in_channels, channels, stride), nn.ReLU(inplace=True), *_convolution(channels, channels, 1)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the features after both."""
        features: Tensor = self.body(images)
        if self.has_skip:
            skipped = images[:, :, :: self.stride, :: self.stride]
            features = features + functional.pad(skipped, (0, 0, 0, 0, 0, self.new_channels))
        return torch.relu(features)


def _blocks(pairs: int, has_skips: bool) -> Iterator[Pair]:
    channels = _WIDTHS[0]
    for width in _WIDTHS:
        for _ in range(pairs):
            yield Pair(channels, width, stride=1 if width == channels else 2, has_skip=has_skips)
            channels = width


def _convolution(in_channels: int, channels: int, stride: int) -> tuple[nn.Module, nn.Module]:
    convolution = nn.Conv2d(in_channels, channels, kernel_size=3, stride=stride, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(channels)
