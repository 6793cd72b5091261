"""Image classification with any backbone of torchvision, timm or pytorchcv."""

from collections.abc import Sequence

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import BinaryAccuracy, BinaryAUROC, MulticlassAccuracy

from lightning_znorm.errors import ArgumentValueError, require_count
from lightning_znorm.vision._metrics import AverageRatio, Task
from lightning_znorm.vision._supervised import SupervisedModule
from lightning_znorm.vision.backbones import make_backbone

__all__ = ["ImageClassifier"]


class ImageClassifier(SupervisedModule):
    """Classify images with a backbone from one of several sources, trained on the cross-entropy.

    Logs ``train_loss``; ``val_loss``, ``val_acc`` (share of correct images), ``val_f1``, ``val_precision`` and
    ``val_recall`` and, for two classes, ``val_auroc``; the same with ``test_``. F1, precision and recall are those of
    class 1 if there are two classes, else the mean over the classes that occur among the true labels of the split; the
    precision of a class that is never predicted is 0. If no label is 1 of two classes, all three are 1 if every image
    is right, else 0. The AUROC of a split with one class only is 0, with a warning.

    Args:
        backbone: Name of a classification model in torchvision, as ``torchvision.models.list_models`` lists them; or
            ``"timm:<name>"``, ``"pytorchcv:<name>"``, ``"cifar_resnet<depth>"`` and the like, see
            :func:`~lightning_znorm.vision.backbones.make_backbone`.
        num_classes: Number of classes, at least 2.
        in_channels: Number of channels of the images. The first convolution gets the backbone's own initialization
            whatever their number. Pretrained weights are for 3 channels; for another number they are spread evenly, so
            that a grey image gives what it would as three equal channels.
        weights: Name of pretrained weights in torchvision (``"DEFAULT"`` for the best, or for those of timm), which are
            downloaded; ``None`` for random ones. The classification head is always a new one.
        small_images: For torchvision's ResNets: a 3 x 3 convolution of stride 1 and no max-pooling at the start, as is
            usual for images of 32 x 32.
        optimizer: Makes the optimizer of the parameters: a class such as ``torch.optim.Adam``, or
            ``partial(torch.optim.SGD, lr=0.1, momentum=0.9)``. In a configuration: ``class_path`` and ``init_args``.
        lr_scheduler: Makes the scheduler of the optimizer, likewise; ``None`` for a constant learning rate. It steps
            after every optimizer step, ``ReduceLROnPlateau`` after every epoch on ``val_loss``. If the length of a
            ``CosineAnnealing`` or a ``OneCycleLR`` is left out, it is that of the training.
        label_smoothing: Of the cross-entropy, in [0, 1].

    Raises:
        TypeError: If ``optimizer`` or ``lr_scheduler`` cannot be called.
        ValueError: If an argument is unknown or out of its range.

    Note:
        A checkpoint does not hold an ``optimizer`` and an ``lr_scheduler`` that were given in Python, but those of the
        command line. To go on training, give them again: ``load_from_checkpoint(path, optimizer=…)``.

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
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        require_count("num_classes", num_classes, least=2)
        require_count("in_channels", in_channels, least=1)
        if not 0 <= label_smoothing <= 1:
            raise ArgumentValueError(
                f"Expected argument `label_smoothing` to be in [0, 1], but got {label_smoothing!r}."
            )
        super().__init__(_metrics(num_classes), optimizer, lr_scheduler)
        self.num_classes = num_classes
        self.backbone = make_backbone(backbone, num_classes, in_channels, weights, small_images)
        self.loss = nn.CrossEntropyLoss(label_smoothing=label_smoothing)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of shape ``(N, num_classes)``."""
        logits = self.backbone(images)
        # GoogLeNet and Inception return their auxiliary heads beside the main one while training
        return logits if isinstance(logits, Tensor) else logits.logits

    def evaluate(self, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return cross-entropy, class probabilities (of two classes, those of class 1) and labels of a batch."""
        images, labels = batch[:2]
        logits = self(images)
        probabilities = self.to_probabilities(logits.detach())
        return self.loss(logits, labels), probabilities[:, 1] if self.num_classes == 2 else probabilities, labels

    def to_probabilities(self, logits: Tensor) -> Tensor:
        """Return class probabilities of shape ``(N, num_classes)``."""
        return logits.softmax(dim=1)


def _metrics(num_classes: int) -> MetricCollection:
    metrics: dict[str, Metric | MetricCollection]
    if num_classes == 2:
        metrics = {"acc": BinaryAccuracy(), **_ratios("binary", 1), "auroc": BinaryAUROC()}
    else:
        metrics = {"acc": MulticlassAccuracy(num_classes, average="micro"), **_ratios("multiclass", num_classes)}
    return MetricCollection(metrics)


def _ratios(task: Task, num_classes: int) -> dict[str, Metric]:
    return {
        "f1": AverageRatio("dice", task, num_classes),
        "precision": AverageRatio("precision", task, num_classes),
        "recall": AverageRatio("sensitivity", task, num_classes),
    }
