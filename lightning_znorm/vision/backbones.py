"""Networks for classification by name, from several sources."""

import re
from collections.abc import Callable
from typing import Any

from torch import nn
from torchvision import models

from lightning_znorm.errors import ArgumentValueError, require_packages, unknown_choice
from lightning_znorm.vision._first_convolution import first_convolution_channels, spread_first_convolution
from lightning_znorm.vision.cifar_networks import CifarNetwork, CifarVGG

__all__ = ["make_backbone"]

_CIFAR = re.compile(r"cifar_(resnet|plain|vgg)(\d+)(_nonorm)?")


def make_backbone(
    name: str, num_classes: int, in_channels: int = 3, weights: str | None = None, small_images: bool = False
) -> nn.Module:
    """Build a classification model for your own images and classes.

    Args:
        name: One of

            - a model of torchvision, such as ``"resnet18"``;
            - ``"timm:<name>"``, a model of timm;
            - ``"pytorchcv:<name>"``, a model of pytorchcv, such as ``"pytorchcv:densenet40_k12_cifar10"``;
            - ``"cifar_resnet<depth>"``, ``"cifar_plain<depth>"``: the networks for images of 32 x 32 with and without
              skip connections, see :class:`~lightning_znorm.vision.cifar_networks.CifarNetwork`; and
              ``"cifar_vgg<depth>"``, see :class:`~lightning_znorm.vision.cifar_networks.CifarVGG`. All have BatchNorm,
              unless the name ends in ``_nonorm``, such as ``"cifar_resnet20_nonorm"``.
        num_classes: Number of classes.
        in_channels: Number of channels of the images. The first convolution gets the network's own initialization
            for any number of them; pretrained weights are spread evenly.
        weights: Name of pretrained weights of torchvision, or ``"DEFAULT"`` for the best, or for those of timm.
        small_images: For torchvision's ResNets: keep the resolution at the start.

    Raises:
        ValueError: If there is no such model or no such weights, or ``small_images`` is asked of another family than
            ResNet.
        ModuleNotFoundError: If pytorchcv is needed and not installed.

    Example::

        >>> sum(parameter.numel() for parameter in make_backbone("squeezenet1_1", 10, in_channels=1).parameters())
        726474

    """
    source, colon, rest = name.partition(":")
    makers: dict[str, Callable[..., nn.Module]] = {"timm": _make_timm, "pytorchcv": _make_pytorchcv}
    if colon and source in makers:
        model = makers[source](rest, num_classes, in_channels, weights)
    elif match := _CIFAR.fullmatch(name):
        if weights is not None:
            raise _no_weights(name, weights)
        model = _make_cifar(match[1], int(match[2]), num_classes, in_channels, has_norm=match[3] is None)
    else:
        model = _make_torchvision(name, num_classes, in_channels, weights)
    if small_images:
        if not isinstance(model, models.ResNet):
            raise ArgumentValueError(
                f"Argument `small_images` is for torchvision's ResNets, but `backbone` is {name!r}. Set it to False."
            )
        width = model.conv1.out_channels
        model.conv1 = nn.Conv2d(in_channels, width, kernel_size=3, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")  # as ResNet itself does
        model.maxpool = nn.Identity()
    return model


def _make_cifar(kind: str, depth: int, num_classes: int, in_channels: int, has_norm: bool) -> nn.Module:
    if kind == "vgg":
        return CifarVGG(depth, num_classes, in_channels, has_norm)
    return CifarNetwork(depth, num_classes, in_channels, has_skips=kind == "resnet", has_norm=has_norm)


def _make_torchvision(name: str, num_classes: int, in_channels: int, weights: str | None) -> nn.Module:
    known = models.list_models(module=models)
    if name not in known:
        raise unknown_choice("backbone", name, known)
    model: nn.Module
    if weights is None:
        with first_convolution_channels(in_channels):
            model = models.get_model(name, weights=None, num_classes=num_classes)
        return model
    choices = [member.name for member in models.get_model_weights(name)]
    if weights not in (*choices, "DEFAULT"):
        raise unknown_choice("weights", weights, [*choices, "DEFAULT"])
    model = models.get_model(name, weights=weights)
    _replace_head(model, num_classes)
    if in_channels != 3:
        spread_first_convolution(model, in_channels)
        if getattr(model, "transform_input", False):
            model.transform_input = False  # type: ignore[assignment]  # rescales exactly three channels
    return model


def _make_timm(name: str, num_classes: int, in_channels: int, weights: str | None) -> nn.Module:
    import timm

    if not timm.is_model(name):
        raise unknown_choice("backbone", f"timm:{name}", [f"timm:{known}" for known in timm.list_models()])
    if weights not in (None, "DEFAULT"):
        raise ArgumentValueError(
            f"Expected argument `weights` to be None or 'DEFAULT' for a model of timm, but got {weights!r}. Others go"
            " by the name of the model, as in 'timm:resnet18.a1_in1k'."
        )
    model: nn.Module = timm.create_model(
        name, pretrained=weights is not None, num_classes=num_classes, in_chans=in_channels
    )
    return model


def _make_pytorchcv(name: str, num_classes: int, in_channels: int, weights: str | None) -> nn.Module:
    require_packages(f"The backbone 'pytorchcv:{name}'", "paper", "pytorchcv")
    from pytorchcv import model_provider

    known: dict[str, Any] = model_provider._models
    if name not in known:
        raise unknown_choice("backbone", f"pytorchcv:{name}", [f"pytorchcv:{each}" for each in known])
    if weights is not None:
        raise _no_weights(f"pytorchcv:{name}", weights)
    model: Any = model_provider.get_model(name, in_channels=in_channels)
    if model.num_classes != num_classes:  # those for CIFAR take no other number than 10 or 100
        _replace_head(model, num_classes, model.num_classes)
    network: nn.Module = model
    return network


def _no_weights(name: str, weights: str) -> ArgumentValueError:
    return ArgumentValueError(f"Expected argument `weights` to be None for the backbone {name!r}, but got {weights!r}.")


def _replace_head(model: nn.Module, num_classes: int, outputs: int = 1000) -> None:
    """Replace every layer of so many outputs, by default ImageNet's; GoogLeNet and Inception have auxiliary ones."""
    heads = {
        name: module
        for name, module in model.named_modules()
        if (isinstance(module, nn.Linear) and module.out_features == outputs)
        or (isinstance(module, nn.Conv2d) and module.out_channels == outputs)
    }
    for name, old in heads.items():
        new: nn.Module
        if isinstance(old, nn.Linear):
            new = nn.Linear(old.in_features, num_classes)
        else:
            new = nn.Conv2d(old.in_channels, num_classes, kernel_size=old.kernel_size)  # type: ignore[arg-type]
        model.set_submodule(name, new)
