"""LightningDataModules whose data come with an installed package."""

from lightning_znorm.vision.data.brain_mri import BrainMRI
from lightning_znorm.vision.data.digits import Digits

__all__ = ["BrainMRI", "Digits"]
