"""Slices of the brain template that nilearn carries, with masks of grey and white matter."""

from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lightning_znorm.errors import ArgumentValueError, require_count, require_packages
from lightning_znorm.vision.data._images import ImageDataModule
from lightning_znorm.vision.data._splits import Split, Tensors, choose

__all__ = ["BrainMRI"]

_BLOCKS, _VAL_BLOCK, _TEST_BLOCK = 7, 2, 4
_MIN_BRAIN = 0.02  # share of a slice's pixels that must be brain


class BrainMRI(ImageDataModule):
    """Axial slices of the ICBM 152 T1 brain template with grey and white matter, from nilearn: a demonstration.

    It shows segmentation at work, without a download, and is no benchmark. The masks are nearly a function of one
    pixel: a look-up of 64 ranges of intensity, filled from the training slices, has a test Dice of 0.95 (grey matter)
    and 0.98 (white matter). The Dice of a network says how far it gets in a few steps, and nothing about anatomy.

    The slices with brain, 1 mm apart, are cut into seven blocks. The third block is the validation split, the fifth is
    the test split, and the others are for training, without the slices within ``gap`` of a held-out block: no held-out
    slice is the neighbour of a training slice.

    Note:
        This is a single brain, the average of 152, and neighbouring slices are nearly copies of each other: nothing
        follows for a new patient.

    Args:
        batch_size: Slices per batch.
        image_size: Side of the slices in pixels; a multiple of 32 suits most encoders. A pixel covers ``233 /
            image_size`` mm.
        gap: Slices (1 mm each) left out on either side of a held-out block.
        num_workers: Worker processes per loader; the data are in memory, so that 0 is usually fastest.
        seed: Seed of the training order.

    Raises:
        ModuleNotFoundError: If nilearn is not installed.
        ValueError: If an argument is out of its range.

    Shapes:
        Slices ``(N, 1, image_size, image_size)`` float32, standardized over the training split; masks ``(N, 2,
        image_size, image_size)`` float32 of 0 and 1, grey matter and white matter, where the tissue's probability is at
        least one half.

    Reference:
        Fonov et al., *Unbiased average age-appropriate atlases for pediatric studies*, NeuroImage 54, 2011 (ICBM 152
        nonlinear symmetric, 2009a).

    Example::

        >>> brain = BrainMRI(batch_size=4, image_size=64)
        >>> brain.setup()
        >>> slices, masks = next(iter(brain.val_dataloader()))
        >>> slices.shape, masks.shape
        (torch.Size([4, 1, 64, 64]), torch.Size([4, 2, 64, 64]))

    """

    def __init__(
        self, batch_size: int = 8, image_size: int = 96, gap: int = 4, num_workers: int = 0, seed: int = 0
    ) -> None:
        require_packages("`BrainMRI`", "demo", "nilearn")
        super().__init__(batch_size, None, num_workers, False, seed)
        self.image_size = require_count("image_size", image_size, least=16)
        self.gap = require_count("gap", gap)

    def load(self, name: str) -> Split:
        """Return one split."""
        return choose(*self._whole, name)

    @cached_property
    def _whole(self) -> tuple[Tensors, dict[str, list[int]]]:
        """Slices of the template with their masks, and the indices of each split."""
        volume = load_template()
        keep = (volume[:, 1:].sum(dim=1) >= 0.5).float().mean(dim=(1, 2)) >= _MIN_BRAIN
        slices = _resize(volume[keep], self.image_size)
        return Tensors(slices[:, :1], (slices[:, 1:] >= 0.5).byte()), split_into_blocks(len(slices), self.gap)


def load_template() -> Tensor:
    """Read the three volumes, in millimetres.

    Returns:
        float32 of shape ``(slices, 3, height, width)`` in [0, 1]: T1, grey matter and white matter. Slices run from
        the feet to the head; in each, the first row is the front of the head and the first column its left.

    """
    from nilearn import datasets

    loaders = (datasets.load_mni152_template, datasets.load_mni152_gm_template, datasets.load_mni152_wm_template)
    volumes = np.stack([loader(resolution=1).get_fdata(dtype=np.float32) for loader in loaders])
    # (3, left-right, back-front, down-up) to (down-up, 3, front-back, left-right)
    return torch.from_numpy(np.ascontiguousarray(volumes.transpose(3, 0, 2, 1)[:, :, ::-1]))


def split_into_blocks(count: int, gap: int) -> dict[str, list[int]]:
    """Assign a row of neighbouring slices to the splits, by blocks.

    Args:
        count: Number of slices.
        gap: Slices to leave out between a training block and a held-out block.

    Returns:
        Indices of ``train``, ``val`` and ``test``.

    Raises:
        ValueError: If the gap leaves too few slices for training.

    Example::

        >>> split_into_blocks(21, gap=1)
        {'train': [0, 1, 2, 3, 4, 10, 16, 17, 18, 19, 20], 'val': [6, 7, 8], 'test': [12, 13, 14]}

    """
    block = [index * _BLOCKS // count for index in range(count)]
    held_out = [index for index in range(count) if block[index] in (_VAL_BLOCK, _TEST_BLOCK)]
    near = {index + offset for index in held_out for offset in range(-gap, gap + 1)}
    train = [index for index in range(count) if index not in near]
    if len(train) < count // 4:
        raise ArgumentValueError(
            f"Argument `gap` is {gap!r}, which leaves only {len(train)} of {count} slices for training."
        )
    return {
        "train": train,
        "val": [index for index in held_out if block[index] == _VAL_BLOCK],
        "test": [index for index in held_out if block[index] == _TEST_BLOCK],
    }


def _resize(slices: Tensor, size: int) -> Tensor:
    height, width = slices.shape[-2:]
    side = max(height, width)
    vertical, horizontal = side - height, side - width
    padding = (horizontal // 2, horizontal - horizontal // 2, vertical // 2, vertical - vertical // 2)
    square = functional.pad(slices, padding)
    return functional.interpolate(square, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
