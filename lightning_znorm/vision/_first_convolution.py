"""Networks for images of another number of channels than 3, which most are written for."""

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import nn


@contextmanager
def first_convolution_takes(in_channels: int) -> Iterator[None]:
    """Give the first convolution that is constructed inside so many input channels.

    The network's own initialization runs on it, so that schemes by fan-in and by fan-out are both exact.

    Example::

        >>> with first_convolution_takes(1):
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


def find_first_convolution(model: nn.Module) -> tuple[str, nn.Conv2d]:
    """Return the first convolution of a network, and its name."""
    return next((name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d))


def spread_first_convolution(model: nn.Module, in_channels: int) -> None:
    """Replace the first convolution by one that gives for a grey image what the old one does for equal channels."""
    name, old = find_first_convolution(model)
    new = nn.Conv2d(
        in_channels,
        old.out_channels,
        kernel_size=old.kernel_size,  # type: ignore[arg-type]
        stride=old.stride,  # type: ignore[arg-type]
        padding=old.padding,  # type: ignore[arg-type]
        dilation=old.dilation,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    with torch.no_grad():
        share = old.weight.sum(dim=1, keepdim=True) / in_channels
        new.weight.copy_(share.expand_as(new.weight))
        if old.bias is not None and new.bias is not None:
            new.bias.copy_(old.bias)
    model.set_submodule(name, new)
