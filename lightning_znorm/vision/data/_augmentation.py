"""Augmentations of a batch, each image with random numbers of its own.

torchvision's transforms v2 give all images of a batch one crop and one angle, and draw from the global generator, which
ranks share and layers with dropout use. These are functions of uniform random numbers instead.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from lightning_znorm.errors import DataError

__all__ = ["Augmentation", "FlipAndCrop", "FlipAndRotate", "QuarterTurns"]


class Augmentation(ABC):
    """A random change of an image, and with it of its mask.

    Attributes:
        draws: Random numbers that an image takes.

    """

    draws: ClassVar[int]

    @abstractmethod
    def __call__(self, images: Tensor, masks: Tensor | None, draws: Tensor) -> tuple[Tensor, Tensor | None]:
        """Change a batch.

        Args:
            images: ``(N, C, H, W)`` uint8.
            masks: ``(N, 1, H, W)`` uint8, or ``None``.
            draws: ``(N, self.draws)``, uniform in [0, 1), on the same device.

        """


@dataclass(frozen=True)
class FlipAndCrop(Augmentation):
    """A horizontal flip in half of the cases, and a random crop of the image after padding it with black.

    The usual augmentation of CIFAR-10: He et al., *Deep Residual Learning for Image Recognition*, arXiv 1512.03385,
    Sec. 4.2.

    Args:
        padding: Pixels on each side.

    Example::

        >>> image = torch.arange(9, dtype=torch.uint8).view(1, 1, 3, 3)
        >>> FlipAndCrop(padding=1)(image, None, torch.tensor([[0.2, 0.0, 0.9]]))[0]  # flipped, down by 1, left by 1
        tensor([[[[0, 0, 0],
                  [1, 0, 0],
                  [4, 3, 0]]]], dtype=torch.uint8)

    """

    padding: int = 4
    draws: ClassVar[int] = 3

    def __call__(self, images: Tensor, masks: Tensor | None, draws: Tensor) -> tuple[Tensor, Tensor | None]:
        flips = draws[:, 0] < 0.5
        corners = (draws[:, 1:] * (2 * self.padding + 1)).long()
        return self._change(images, flips, corners), None if masks is None else self._change(masks, flips, corners)

    def _change(self, images: Tensor, flips: Tensor, corners: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        padded = functional.pad(_where(flips, images.flip(-1), images), (self.padding,) * 4)
        rows = corners[:, 0, None] + torch.arange(height, device=images.device)
        columns = corners[:, 1, None] + torch.arange(width, device=images.device)
        number = torch.arange(len(images), device=images.device)[:, None, None]
        return padded.permute(0, 2, 3, 1)[number, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@dataclass(frozen=True)
class QuarterTurns(Augmentation):
    """A quarter turn, a horizontal and a vertical flip, each in half of the cases: all eight symmetries of a square.

    Tissue has no upright: Veeling et al., *Rotation Equivariant CNNs for Digital Pathology*, arXiv 1806.03962.

    Example::

        >>> image = torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8).view(1, 1, 2, 2)
        >>> QuarterTurns()(image, None, torch.tensor([[0.2, 0.9, 0.9]]))[0].view(2, 2)  # counterclockwise
        tensor([[2, 4],
                [1, 3]], dtype=torch.uint8)

    """

    draws: ClassVar[int] = 3

    def __call__(self, images: Tensor, masks: Tensor | None, draws: Tensor) -> tuple[Tensor, Tensor | None]:
        height, width = images.shape[-2:]
        if height != width:
            raise DataError(
                f"Quarter turns need square images, but got {height} x {width} pixels. Set `image_size`, or choose"
                " another `augment`."
            )
        chosen = draws < 0.5
        return self._change(images, chosen), None if masks is None else self._change(masks, chosen)

    def _change(self, images: Tensor, chosen: Tensor) -> Tensor:
        images = _where(chosen[:, 0], images.rot90(1, (-2, -1)), images)
        images = _where(chosen[:, 1], images.flip(-1), images)
        return _where(chosen[:, 2], images.flip(-2), images)


@dataclass(frozen=True)
class FlipAndRotate(Augmentation):
    """A horizontal flip in half of the cases, and a rotation by a small random angle; the corners become black.

    The image is interpolated bilinearly, the mask takes the nearest pixel.

    Args:
        degrees: The largest angle.

    Example::

        >>> image = torch.full((1, 1, 8, 8), 100, dtype=torch.uint8)
        >>> turned, mask = FlipAndRotate(degrees=45)(image, image, torch.tensor([[0.9, 1.0]]))
        >>> turned[0, 0, 0, 0].item(), turned[0, 0, 4, 4].item()
        (0, 100)

    """

    degrees: float = 15.0
    draws: ClassVar[int] = 2

    def __call__(self, images: Tensor, masks: Tensor | None, draws: Tensor) -> tuple[Tensor, Tensor | None]:
        flips = draws[:, 0] < 0.5
        angles = (2 * draws[:, 1] - 1) * math.radians(self.degrees)
        changed = self._change(images, flips, angles, "bilinear").round().to(images.dtype)
        if masks is None:
            return changed, None
        return changed, self._change(masks, flips, angles, "nearest").to(masks.dtype)

    def _change(self, images: Tensor, flips: Tensor, angles: Tensor, mode: str) -> Tensor:
        height, width = images.shape[-2:]
        cosine, sine, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
        # in pixels it is a rotation; the coordinates of a grid run from -1 to 1 along both sides
        rows = [cosine, -sine * height / width, zero, sine * width / height, cosine, zero]
        matrix = torch.stack(rows, dim=1).view(-1, 2, 3)
        grid = functional.affine_grid(matrix, [len(images), 1, height, width], align_corners=False)
        flipped = _where(flips, images.flip(-1), images)
        turned: Tensor = functional.grid_sample(flipped.float(), grid, mode=mode, align_corners=False)
        return turned


def _where(chosen: Tensor, changed: Tensor, images: Tensor) -> Tensor:
    return torch.where(chosen[:, None, None, None], changed, images)
