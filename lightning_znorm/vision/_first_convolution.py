"""Networks for images of another number of channels than 3, which most are written for."""

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

from torch import nn


@contextmanager
def first_convolution_channels(in_channels: int) -> Iterator[None]:
    """Give the first convolution that is constructed inside so many input channels, before it is initialized.

    Example::

        >>> with first_convolution_channels(1):
        ...     network = nn.Sequential(nn.Conv2d(3, 8, kernel_size=3), nn.Conv2d(8, 8, kernel_size=3))
        >>> [convolution.in_channels for convolution in network]
        [1, 8]

    """
    original = nn.Conv2d.__init__
    parameters = signature(original)

    def construct(self: nn.Conv2d, *args: Any, **kwargs: Any) -> None:
        nn.Conv2d.__init__ = original  # type: ignore[method-assign]
        call = parameters.bind(self, *args, **kwargs)
        call.arguments["in_channels"] = in_channels
        original(*call.args, **call.kwargs)

    nn.Conv2d.__init__ = construct  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Conv2d.__init__ = original  # type: ignore[method-assign]


def find_first_convolution(model: nn.Module) -> nn.Conv2d:
    """Return the first convolution of a network."""
    return next(module for module in model.modules() if isinstance(module, nn.Conv2d))


def spread_first_convolution(model: nn.Module, in_channels: int) -> None:
    """Make the first convolution give for a grey image what it did for equal channels."""
    convolution = find_first_convolution(model)
    share = convolution.weight.detach().sum(dim=1, keepdim=True) / in_channels
    convolution.weight = nn.Parameter(share.repeat(1, in_channels, 1, 1))
    convolution.in_channels = in_channels
