"""LightningModules and LightningDataModules that show ZNorm at work, for classification and segmentation.

Each name is imported on first use, so that a classifier does not need segmentation-models-pytorch and nothing here
needs scikit-learn or nilearn before a data set of theirs is made.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lightning_znorm.errors import require_packages

if TYPE_CHECKING:
    from lightning_znorm.vision.classification import ImageClassifier
    from lightning_znorm.vision.data.brain_mri import BrainMRI
    from lightning_znorm.vision.data.cifar10 import CIFAR10
    from lightning_znorm.vision.data.digits import Digits
    from lightning_znorm.vision.data.image_folder import ImageFolder
    from lightning_znorm.vision.data.lgg import LGGSegmentation
    from lightning_znorm.vision.data.pcam import PCam
    from lightning_znorm.vision.perceptron import PerceptronClassifier
    from lightning_znorm.vision.schedulers import CosineAnnealing
    from lightning_znorm.vision.segmentation import SemanticSegmenter

__all__ = [
    "CIFAR10",
    "BrainMRI",
    "CosineAnnealing",
    "Digits",
    "ImageClassifier",
    "ImageFolder",
    "LGGSegmentation",
    "PCam",
    "PerceptronClassifier",
    "SemanticSegmenter",
]

_HOME = {
    "BrainMRI": "lightning_znorm.vision.data.brain_mri",
    "CIFAR10": "lightning_znorm.vision.data.cifar10",
    "CosineAnnealing": "lightning_znorm.vision.schedulers",
    "Digits": "lightning_znorm.vision.data.digits",
    "ImageClassifier": "lightning_znorm.vision.classification",
    "ImageFolder": "lightning_znorm.vision.data.image_folder",
    "LGGSegmentation": "lightning_znorm.vision.data.lgg",
    "PCam": "lightning_znorm.vision.data.pcam",
    "PerceptronClassifier": "lightning_znorm.vision.perceptron",
    "SemanticSegmenter": "lightning_znorm.vision.segmentation",
}
_NEEDED = {"SemanticSegmenter": ("torchvision", "segmentation_models_pytorch")}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require_packages(f"`lightning_znorm.vision.{name}`", "vision", *_NEEDED.get(name, ("torchvision",)))
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
