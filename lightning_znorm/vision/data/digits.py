"""Handwritten digits that scikit-learn carries."""

from functools import cached_property

import torch
from torch.nn import functional

from lightning_znorm.errors import require_count, require_packages
from lightning_znorm.vision.data._images import ImageDataModule
from lightning_znorm.vision.data._splits import Split, Tensors, choose

__all__ = ["Digits"]

_TRAIN, _VAL = 1197, 300


class Digits(ImageDataModule):
    """1,797 real handwritten digits of 8 x 8 pixels, from scikit-learn: no download.

    1,197 for training, 300 each for validation and test, with the classes in proportion. Images are enlarged
    bilinearly and standardized with the mean and the standard deviation of the training split.

    Args:
        batch_size: Images per batch.
        image_size: Side of the images in pixels; 8 leaves them as they are.
        num_workers: Worker processes per loader; the data are in memory, so that 0 is usually fastest.
        seed: Seed of the split and of the training order.

    Raises:
        ModuleNotFoundError: If scikit-learn is not installed.
        ValueError: If an argument is out of its range.

    Shapes:
        Images ``(N, 1, image_size, image_size)`` float32, labels ``(N,)`` int64 of 0 to 9.

    Reference:
        Alpaydin and Kaynak, *Optical Recognition of Handwritten Digits*, UCI Machine Learning Repository, 1998.

    Example::

        >>> digits = Digits(batch_size=16, image_size=8)
        >>> digits.setup()
        >>> images, labels = next(iter(digits.train_dataloader()))
        >>> images.shape, labels.dtype
        (torch.Size([16, 1, 8, 8]), torch.int64)

    """

    def __init__(self, batch_size: int = 64, image_size: int = 32, num_workers: int = 0, seed: int = 0) -> None:
        require_packages("`Digits`", "demo", "sklearn")
        super().__init__(batch_size, None, num_workers, False, seed)
        self.image_size = require_count("image_size", image_size, least=8)

    def load(self, name: str) -> Split:
        """Return one split."""
        return choose(*self._whole, name)

    @cached_property
    def _whole(self) -> tuple[Tensors, dict[str, list[int]]]:
        """Enlarged digits with their labels, and the indices of each split."""
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        pixels, classes = load_digits(return_X_y=True)
        labels = torch.from_numpy(classes).long()
        indices = range(len(labels))
        train, rest = train_test_split(indices, train_size=_TRAIN, stratify=labels, random_state=self.seed)
        val, test = train_test_split(rest, train_size=_VAL, stratify=labels[rest], random_state=self.seed)

        images = torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 16
        images = functional.interpolate(images, size=(self.image_size,) * 2, mode="bilinear", align_corners=False)
        return Tensors(images, labels), {"train": train, "val": val, "test": test}
