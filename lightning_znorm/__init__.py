"""ZNorm (z-score gradient normalization, arXiv 2408.01215) for PyTorch Lightning."""

from lightning_znorm.callbacks import GradientCentralization, ZNorm
from lightning_znorm.functional import GradientStats, centralize_, znorm_
from lightning_znorm.hooks import AttachedTransform, attach
from lightning_znorm.monitor import GradientMonitor
from lightning_znorm.transform import GradientTransform

__version__ = "0.1.0.dev0"

__all__ = [
    "AttachedTransform",
    "GradientCentralization",
    "GradientMonitor",
    "GradientStats",
    "GradientTransform",
    "ZNorm",
    "attach",
    "centralize_",
    "znorm_",
]
