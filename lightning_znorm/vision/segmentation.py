"""Semantic segmentation with any architecture and encoder of segmentation-models-pytorch."""

from collections.abc import Sequence
from inspect import signature
from typing import Any

import segmentation_models_pytorch as smp
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MetricCollection

from lightning_znorm.errors import ArgumentValueError, DataError, require_count, unknown_choice
from lightning_znorm.vision._first_convolution import find_first_convolution, first_convolution_channels
from lightning_znorm.vision._metrics import AverageRatio, DicePerCase, Task
from lightning_znorm.vision._supervised import SupervisedModule

__all__ = ["SemanticSegmenter"]


class SemanticSegmenter(SupervisedModule):
    r"""Segment images with an encoder-decoder network, trained on the sum of the Dice loss and the cross-entropy.

    Logs ``train_loss``; ``val_loss``, ``val_dice``, ``val_iou``, ``val_sensitivity`` and ``val_specificity``; the same
    with ``test_``. With the true and false positives and negatives of all pixels of a split,

    .. math::
        \text{Dice} = \frac{2\,TP}{2\,TP + FP + FN}, \quad \text{IoU} = \frac{TP}{TP + FP + FN}, \quad
        \text{sensitivity} = \frac{TP}{TP + FN}, \quad \text{specificity} = \frac{TN}{TN + FP},

    averaged over the classes that occur in the true masks of the split (for the specificity, the classes that some
    pixel does not have). Where there is no such class, as for the Dice of a split without tumor, the value is 1 if
    every pixel is right, else 0.

    ``val_dice`` pools all pixels: slices with an empty mask do not dominate, and large tumors weigh more than small
    ones. ``val_dice_per_case`` is the mean of the Dice of each case, all images of a case pooled, over the pairs of a
    case and a class that occur in the true masks: all patients weigh the same. It is logged where the batches have the
    cases. Published results are often per patient: compare like with like.

    The Dice loss of a class without a single pixel in the batch is 0 whatever is predicted, so that only the
    cross-entropy learns from a batch without tumor. Both are computed in float32 at least.

    Args:
        architecture: Name of a model in segmentation-models-pytorch, such as ``"Unet"``.
        encoder: Name of an encoder in segmentation-models-pytorch, or ``"tu-"`` and the name of a timm model.
        encoder_weights: Name of pretrained weights of the encoder, which are downloaded; ``None`` for random ones.
        in_channels: Number of channels of the images. The first convolution gets the encoder's own initialization
            whatever their number.
        num_classes: Number of masks per image; 1 in mode ``"binary"``.
        mode: ``"binary"``, ``"multilabel"`` (masks may overlap; binary cross-entropy of each) or ``"multiclass"``
            (each pixel has one class; cross-entropy).
        optimizer: Makes the optimizer of the parameters: a class such as ``torch.optim.Adam``, or
            ``partial(torch.optim.SGD, lr=0.1, momentum=0.9)``. In a configuration: ``class_path`` and ``init_args``.
        lr_scheduler: Makes the scheduler of the optimizer, likewise; ``None`` for a constant learning rate. It steps
            after every optimizer step, ``ReduceLROnPlateau`` after every epoch on ``val_loss``. If the length of a
            ``CosineAnnealing`` or a ``OneCycleLR`` is left out, it is that of the training.
        architecture_args: Further arguments of the architecture, such as ``encoder_depth`` and ``decoder_channels``.

    Raises:
        TypeError: If ``optimizer`` or ``lr_scheduler`` cannot be called.
        ValueError: If an argument is unknown or out of its range, or a mask does not fit its image.

    Note:
        A checkpoint does not hold an ``optimizer`` and an ``lr_scheduler`` that were given in Python, but those of the
        command line. To go on training, give them again: ``load_from_checkpoint(path, optimizer=…)``.

    Shapes:
        Images ``(N, in_channels, H, W)`` float. Masks ``(N, 1, H, W)`` or ``(N, H, W)`` in mode ``"binary"`` and
        ``(N, num_classes, H, W)`` in mode ``"multilabel"``, of 0 and 1; ``(N, H, W)`` of class indices in mode
        ``"multiclass"``. Logits ``(N, num_classes, H, W)``. A batch is a pair of images and masks, or has a third
        tensor ``(N,)`` int64, the number of the case (such as the patient) of each image.

    Example::

        >>> import torch
        >>> model = SemanticSegmenter("Unet", "mobilenet_v2", num_classes=2, mode="multilabel")
        >>> model.eval()(torch.zeros(1, 1, 32, 32)).shape
        torch.Size([1, 2, 32, 32])

    """

    def __init__(
        self,
        architecture: str = "Unet",
        encoder: str = "resnet18",
        encoder_weights: str | None = None,
        in_channels: int = 1,
        num_classes: int = 1,
        mode: Task = "binary",
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        architecture_args: dict[str, Any] | None = None,
    ) -> None:
        _check_classes(mode, num_classes)
        super().__init__(
            MetricCollection(
                {
                    "dice": AverageRatio("dice", mode, num_classes),
                    "iou": AverageRatio("iou", mode, num_classes),
                    "sensitivity": AverageRatio("sensitivity", mode, num_classes),
                    "specificity": AverageRatio("specificity", mode, num_classes),
                }
            ),
            optimizer,
            lr_scheduler,
            case_metrics=MetricCollection({"dice_per_case": DicePerCase(mode, num_classes)}),
        )
        self.mode = mode
        self.model = make_segmenter(
            architecture, encoder, encoder_weights, in_channels, num_classes, **architecture_args or {}
        )
        self.dice_loss = smp.losses.DiceLoss(mode=mode, from_logits=True)
        self.cross_entropy = nn.CrossEntropyLoss() if mode == "multiclass" else nn.BCEWithLogitsLoss()

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of shape ``(N, num_classes, H, W)``."""
        logits: Tensor = self.model(images)
        return logits

    def evaluate(self, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return loss, predicted masks and true masks of a batch, as integers."""
        images, masks = batch[:2]
        logits = self(images)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # half precision loses sums over pixels
        masks = self._checked(masks, logits)
        loss = self.dice_loss(logits, masks) + self.cross_entropy(logits, masks)
        predictions = logits.detach().argmax(dim=1) if self.mode == "multiclass" else logits.detach() > 0
        return loss, predictions.long(), masks.long()

    def to_probabilities(self, logits: Tensor) -> Tensor:
        """Return probabilities of shape ``(N, num_classes, H, W)``."""
        return logits.softmax(dim=1) if self.mode == "multiclass" else logits.sigmoid()

    def _checked(self, masks: Tensor, logits: Tensor) -> Tensor:
        expected = tuple(logits.shape)
        if self.mode == "multiclass":
            expected = (expected[0], *expected[2:])
        elif self.mode == "binary" and masks.ndim == 3:
            masks = masks.unsqueeze(1)
        if tuple(masks.shape) != expected:
            raise DataError(
                f"Expected masks of shape {expected} in mode {self.mode!r} for these images, but got"
                f" {tuple(masks.shape)}. Check `num_classes` ({logits.shape[1]}) and `mode`."
            )
        return masks.long() if self.mode == "multiclass" else masks.to(logits.dtype)


def make_segmenter(
    architecture: str,
    encoder: str,
    encoder_weights: str | None = None,
    in_channels: int = 1,
    num_classes: int = 1,
    **architecture_args: Any,
) -> nn.Module:
    """Build a model of segmentation-models-pytorch by the names of its parts.

    Raises:
        ValueError: If there is no such architecture, encoder or pretrained weights, or the architecture has no such
            argument.

    Example::

        >>> type(make_segmenter("linknet", "mobilenet_v2")).__name__
        'Linknet'

    """
    architectures = {cls.__name__: cls for cls in smp.MODEL_ARCHITECTURES_MAPPING.values()}
    if architecture.lower() not in smp.MODEL_ARCHITECTURES_MAPPING:
        raise unknown_choice("architecture", architecture, architectures)
    require_count("in_channels", in_channels, least=1)
    if encoder.startswith("tu-"):
        import timm

        if not timm.is_model(encoder.removeprefix("tu-")):
            raise unknown_choice("encoder", encoder, [f"tu-{name}" for name in timm.list_models()])
    elif encoder not in smp.encoders.get_encoder_names():
        raise unknown_choice("encoder", encoder, smp.encoders.get_encoder_names())
    elif encoder_weights is not None:
        known = smp.encoders.encoders[encoder]["pretrained_settings"]
        if encoder_weights not in known:
            raise unknown_choice("encoder_weights", encoder_weights, known)
    cls = smp.MODEL_ARCHITECTURES_MAPPING[architecture.lower()]
    taken = ("encoder_name", "encoder_weights", "in_channels", "classes", "kwargs")
    choices = [name for name in signature(cls).parameters if name not in taken]
    for name in architecture_args:
        if name not in choices:
            raise unknown_choice("architecture_args", name, choices)
    model: Any = cls(
        encoder,
        encoder_weights=encoder_weights,
        in_channels=in_channels,
        classes=num_classes,
        **architecture_args,
    )
    if in_channels != 3 and encoder_weights is None and not encoder.startswith("tu-"):
        # smp gives PyTorch's default initialization to this layer alone
        with first_convolution_channels(in_channels):
            reference = smp.encoders.get_encoder(encoder)
        find_first_convolution(model.encoder).load_state_dict(find_first_convolution(reference).state_dict())
    network: nn.Module = model
    return network


def _check_classes(mode: str, num_classes: int) -> None:
    if mode not in ("binary", "multilabel", "multiclass"):
        raise unknown_choice("mode", mode, ["binary", "multilabel", "multiclass"])
    if mode == "binary" and num_classes != 1:
        raise ArgumentValueError(
            f"Expected argument `num_classes` to be 1 in mode 'binary', but got {num_classes!r}. For several masks use"
            " `mode='multilabel'` (they may overlap) or `mode='multiclass'`."
        )
    if mode != "binary" and num_classes < 2:
        raise ArgumentValueError(
            f"Expected argument `num_classes` to be at least 2 in mode {mode!r}, but got {num_classes!r}. For one mask"
            " use `mode='binary'`."
        )
