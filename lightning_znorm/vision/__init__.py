"""LightningModules and LightningDataModules that show ZNorm at work, for classification and segmentation.

Each name is imported on first use, so that a classifier does not need segmentation-models-pytorch and nothing here
needs scikit-learn or nilearn before a data set of theirs is made.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_znorm.vision.classification import ImageClassifier
    from lightning_znorm.vision.data.brain_mri import BrainMRI
    from lightning_znorm.vision.data.cifar10 import CIFAR10
    from lightning_znorm.vision.data.digits import Digits
    from lightning_znorm.vision.data.image_folder import ImageFolder
    from lightning_znorm.vision.data.lgg import LGGSegmentation
    from lightning_znorm.vision.data.pcam import PCam
    from lightning_znorm.vision.segmentation import SemanticSegmenter

__all__ = [
    "CIFAR10",
    "BrainMRI",
    "Digits",
    "ImageClassifier",
    "ImageFolder",
    "LGGSegmentation",
    "PCam",
    "SemanticSegmenter",
]

_HOME = {
    "BrainMRI": "lightning_znorm.vision.data.brain_mri",
    "CIFAR10": "lightning_znorm.vision.data.cifar10",
    "Digits": "lightning_znorm.vision.data.digits",
    "ImageClassifier": "lightning_znorm.vision.classification",
    "ImageFolder": "lightning_znorm.vision.data.image_folder",
    "LGGSegmentation": "lightning_znorm.vision.data.lgg",
    "PCam": "lightning_znorm.vision.data.pcam",
    "SemanticSegmenter": "lightning_znorm.vision.segmentation",
}
_DISTRIBUTIONS = {
    "torchvision": "torchvision",
    "segmentation_models_pytorch": "segmentation-models-pytorch",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_HOME[name]), name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _DISTRIBUTIONS:
            raise
        raise ModuleNotFoundError(
            f"`lightning_znorm.vision.{name}` needs {_DISTRIBUTIONS[missing]}, which is not installed. Install it:"
            ' `pip install "lightning-znorm[vision]"`.',
            name=error.name,
        ) from error


def __dir__() -> list[str]:
    return sorted(__all__)
