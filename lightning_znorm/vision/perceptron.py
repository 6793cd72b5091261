"""A deep perceptron: the smallest network in which gradients vanish or explode, by the choice of its arguments."""

from collections.abc import Sequence
from typing import Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lightning_znorm.errors import require_count, unknown_choice
from lightning_znorm.vision._supervised import SupervisedModule

__all__ = ["PerceptronClassifier", "make_perceptron"]

Init = Literal["default", "he"]
Norm = Literal["layer", "batch"]

_NORMS = {"layer": nn.LayerNorm, "batch": nn.BatchNorm1d}


def make_perceptron(
    depth: int,
    width: int = 64,
    init: Init = "he",
    norm: Norm | None = None,
    has_skips: bool = False,
    in_features: int = 64,
    num_classes: int = 10,
) -> nn.Sequential:
    r"""Return ``depth`` ReLU layers of equal width and a linear one.

    With weights :math:`W` and biases :math:`b`, a layer of a plain network is

    .. math::
        x_{k+1} = \mathrm{ReLU}(\mathrm{norm}(W x_k + b)).

    A residual network begins with a linear layer, and goes on with those of pre-activation,

    .. math::
        x_{k+1} = x_k + W\, \mathrm{ReLU}(\mathrm{norm}(x_k)) + b,

    and a last normalization and ReLU.

    Args:
        depth: Number of ReLU layers.
        width: Outputs of each.
        init: ``"default"`` leaves PyTorch's initialization of linear layers, under which the signal and the gradient of
            a plain network without normalization shrink by a factor of about 2.4 per layer. ``"he"`` is that for ReLU,
            which keeps them in a plain network, and makes them grow by a factor of about 1.4 per layer in a residual
            one without normalization; its biases are zero.
        norm: ``"layer"`` for LayerNorm, ``"batch"`` for BatchNorm, ``None`` for none.
        has_skips: Whether the network is residual.
        in_features: Number of inputs, such as the pixels of an image.
        num_classes: Number of outputs.

    Raises:
        ValueError: If an argument is unknown or out of its range.

    Shapes:
        Images ``(N, …)`` of ``in_features`` numbers each, logits ``(N, num_classes)``.

    Sources: He, Zhang, Ren and Sun, *Delving Deep into Rectifiers*, arXiv 1502.01852, for the initialization;
    *Identity Mappings in Deep Residual Networks*, arXiv 1603.05027, for pre-activation.

    Example::

        >>> network = make_perceptron(depth=20, norm="layer")
        >>> network(torch.zeros(2, 1, 8, 8)).shape, sum(isinstance(module, nn.ReLU) for module in network.modules())
        (torch.Size([2, 10]), 20)

    """
    require_count("depth", depth, least=1)
    require_count("width", width, least=1)
    if init not in ("default", "he"):
        raise unknown_choice("init", init, ["default", "he"])
    if norm is not None and norm not in _NORMS:
        raise unknown_choice("norm", norm, [*_NORMS])

    def make_linear(inputs: int) -> nn.Linear:
        linear = nn.Linear(inputs, width)
        if init == "he":
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
            nn.init.zeros_(linear.bias)
        return linear

    def make_activation() -> list[nn.Module]:
        return [nn.ReLU()] if norm is None else [_NORMS[norm](width), nn.ReLU()]

    layers: list[nn.Module] = [nn.Flatten(), make_linear(in_features)]
    for _ in range(depth - 1):
        layer = [*make_activation(), make_linear(width)]
        layers += [Skip(*layer)] if has_skips else layer
    return nn.Sequential(*layers, *make_activation(), nn.Linear(width, num_classes))


class Skip(nn.Module):
    """Modules whose output is added to their input."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*modules)

    def forward(self, features: Tensor) -> Tensor:
        """Return the sum of input and output."""
        total: Tensor = features + self.body(features)
        return total


class PerceptronClassifier(SupervisedModule):
    """Classify small images with a deep perceptron, trained on the cross-entropy.

    Logs ``train_loss``; ``val_loss`` and ``val_acc`` (share of correct images); the same with ``test_``.

    Args:
        depth: Number of ReLU layers, see :func:`make_perceptron`.
        width: Outputs of each.
        init: Initialization of the linear layers, ``"default"`` or ``"he"``.
        norm: ``"layer"``, ``"batch"`` or ``None``.
        has_skips: Whether the network is residual.
        in_features: Number of pixels of an image, in all channels.
        num_classes: Number of classes.
        optimizer: Makes the optimizer of the parameters, as in :class:`~lightning_znorm.vision.ImageClassifier`.
        lr_scheduler: Makes the scheduler of the optimizer, likewise.

    Raises:
        TypeError: If ``optimizer`` or ``lr_scheduler`` cannot be called.
        ValueError: If an argument is unknown or out of its range.

    Shapes:
        Images ``(N, …)`` of ``in_features`` numbers each, labels ``(N,)`` int64, logits ``(N, num_classes)``.

    Example::

        >>> model = PerceptronClassifier(depth=20, has_skips=True)
        >>> model(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])

    """

    def __init__(
        self,
        depth: int = 20,
        width: int = 64,
        init: Init = "he",
        norm: Norm | None = None,
        has_skips: bool = False,
        in_features: int = 64,
        num_classes: int = 10,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        require_count("num_classes", num_classes, least=2)
        super().__init__(
            MetricCollection({"acc": MulticlassAccuracy(num_classes, average="micro")}), optimizer, lr_scheduler
        )
        self.network = make_perceptron(depth, width, init, norm, has_skips, in_features, num_classes)
        self.loss = nn.CrossEntropyLoss()

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of shape ``(N, num_classes)``."""
        logits: Tensor = self.network(images)
        return logits

    def evaluate(self, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return cross-entropy, class probabilities and labels of a batch."""
        images, labels = batch[:2]
        logits = self(images)
        return self.loss(logits, labels), self.to_probabilities(logits.detach()), labels

    def to_probabilities(self, logits: Tensor) -> Tensor:
        """Return class probabilities of shape ``(N, num_classes)``."""
        return logits.softmax(dim=1)
