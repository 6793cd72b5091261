"""Image classification with any backbone of torchvision."""

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC, MulticlassF1Score
from torchvision import models

from lightning_znorm.vision._choices import unknown_choice
from lightning_znorm.vision._supervised import SupervisedModule

__all__ = ["ImageClassifier"]


class ImageClassifier(SupervisedModule):
    """Classify images with a torchvision backbone, trained on the cross-entropy.

    Logs ``train_loss``; ``val_loss``, ``val_acc`` (share of correct images), ``val_f1`` (macro average over the
    classes) and, for two classes, ``val_auroc``; the same with ``test_``.

    Args:
        backbone: Name of a classification model in torchvision, as ``torchvision.models.list_models`` lists them.
        num_classes: Number of classes, at least 2.
        in_channels: Number of channels of the images. Where it is not 3, the backbone's first convolution is replaced;
            pretrained weights are spread evenly, so that a grey image gives what it would as three equal channels.
        weights: Name of pretrained weights in torchvision (``"DEFAULT"`` for the best), which are downloaded; ``None``
            for random ones. The classification head is always a new one.
        small_images: For ResNets: a 3 x 3 convolution of stride 1 and no max-pooling at the start, as is usual for
            images of 32 x 32.
        optimizer: Name of a class in :mod:`torch.optim`.
        lr: Learning rate.
        optimizer_args: Further arguments of the optimizer, such as ``momentum`` or ``weight_decay``.
        scheduler: Name of a class in :mod:`torch.optim.lr_scheduler`, stepped after every optimizer step.
        scheduler_args: Arguments of the scheduler; the length of the usual ones defaults to the whole training.
        label_smoothing: Of the cross-entropy, in [0, 1].

    Raises:
        ValueError: If an argument is unknown or out of its range.

    Shapes:
        Images ``(N, in_channels, H, W)`` float, labels ``(N,)`` int64, logits ``(N, num_classes)``.

    Example::

        >>> import torch
        >>> model = ImageClassifier(backbone="resnet18", num_classes=10, in_channels=1)
        >>> model.eval()(torch.zeros(2, 1, 32, 32)).shape
        torch.Size([2, 10])

    """

    def __init__(
        self,
        backbone: str = "resnet18",
        num_classes: int = 10,
        in_channels: int = 3,
        weights: str | None = None,
        small_images: bool = False,
        optimizer: str = "Adam",
        lr: float = 1e-3,
        optimizer_args: dict[str, Any] | None = None,
        scheduler: str | None = None,
        scheduler_args: dict[str, Any] | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        if num_classes < 2:
            raise ValueError(f"Expected argument `num_classes` to be at least 2, but got {num_classes!r}.")
        if in_channels < 1:
            raise ValueError(f"Expected argument `in_channels` to be at least 1, but got {in_channels!r}.")
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"Expected argument `label_smoothing` to be in [0, 1], but got {label_smoothing!r}.")
        metrics: dict[str, Any] = {
            "acc": MulticlassAccuracy(num_classes, average="micro"),
            "f1": MulticlassF1Score(num_classes, average="macro"),
        }
        if num_classes == 2:
            metrics["auroc"] = MulticlassAUROC(num_classes)
        super().__init__(MetricCollection(metrics), optimizer, lr, optimizer_args, scheduler, scheduler_args)
        self.save_hyperparameters()
        self.backbone = make_backbone(backbone, num_classes, in_channels, weights, small_images)
        self.loss = nn.CrossEntropyLoss(label_smoothing=label_smoothing)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of shape ``(N, num_classes)``."""
        logits = self.backbone(images)
        # GoogLeNet and Inception return their auxiliary heads beside the main one while training
        return logits if isinstance(logits, Tensor) else logits.logits

    def evaluate(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return cross-entropy, class probabilities and labels of a batch."""
        images, labels = batch
        logits = self(images)
        return self.loss(logits, labels), logits.detach().softmax(dim=1), labels

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return class probabilities of shape ``(N, num_classes)``."""
        images = batch[0] if isinstance(batch, (tuple, list)) else batch
        probabilities: Tensor = self(images).softmax(dim=1)
        return probabilities


def make_backbone(
    name: str, num_classes: int, in_channels: int = 3, weights: str | None = None, small_images: bool = False
) -> nn.Module:
    """Build a torchvision classification model for images and classes of one's own.

    Raises:
        ValueError: If there is no such model or no such weights, or ``small_images`` is asked of another family than
            ResNet.

    Example::

        >>> sum(parameter.numel() for parameter in make_backbone("squeezenet1_1", 10, in_channels=1).parameters())
        726474

    """
    known = models.list_models(module=models)
    if name not in known:
        raise unknown_choice("backbone", name, known)
    model: nn.Module
    if weights is None:
        model = models.get_model(name, weights=None, num_classes=num_classes)
    else:
        choices = [member.name for member in models.get_model_weights(name)]
        if weights not in (*choices, "DEFAULT"):
            raise unknown_choice("weights", weights, [*choices, "DEFAULT"])
        model = models.get_model(name, weights=weights)
        _replace_head(model, num_classes)
    if small_images:
        if not isinstance(model, models.ResNet):
            raise ValueError(f"Argument `small_images` is for ResNets, but `backbone` is {name!r}. Set it to False.")
        width = model.conv1.out_channels
        model.conv1 = nn.Conv2d(model.conv1.in_channels, width, kernel_size=3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    if in_channels != 3:
        _replace_first_convolution(model, in_channels, keep_weights=weights is not None and not small_images)
    return model


def _replace_first_convolution(model: nn.Module, in_channels: int, keep_weights: bool) -> None:
    name, old = next((name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    new = nn.Conv2d(
        in_channels,
        old.out_channels,
        kernel_size=old.kernel_size,  # type: ignore[arg-type]
        stride=old.stride,  # type: ignore[arg-type]
        padding=old.padding,  # type: ignore[arg-type]
        dilation=old.dilation,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    if keep_weights:
        with torch.no_grad():
            share = old.weight.sum(dim=1, keepdim=True) / in_channels
            new.weight.copy_(share.expand_as(new.weight))
            if old.bias is not None and new.bias is not None:
                new.bias.copy_(old.bias)
    model.set_submodule(name, new)
    if getattr(model, "transform_input", False):
        model.transform_input = False  # type: ignore[assignment]  # rescales exactly three channels


def _replace_head(model: nn.Module, num_classes: int) -> None:
    """Replace every layer of 1,000 outputs, ImageNet's classes; GoogLeNet and Inception have auxiliary ones."""
    heads = {
        name: module
        for name, module in model.named_modules()
        if (isinstance(module, nn.Linear) and module.out_features == 1000)
        or (isinstance(module, nn.Conv2d) and module.out_channels == 1000)
    }
    for name, old in heads.items():
        new: nn.Module
        if isinstance(old, nn.Linear):
            new = nn.Linear(old.in_features, num_classes)
        else:
            new = nn.Conv2d(old.in_channels, num_classes, kernel_size=old.kernel_size)  # type: ignore[arg-type]
        model.set_submodule(name, new)
