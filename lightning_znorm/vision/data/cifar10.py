"""CIFAR-10."""

from pathlib import Path

import torch
from torchvision import datasets
from torchvision.datasets.utils import download_and_extract_archive

from lightning_znorm.errors import ArgumentValueError, DownloadError, require_count
from lightning_znorm.vision.data._augmentation import FlipAndCrop
from lightning_znorm.vision.data._files import explained, locked, shuffled
from lightning_znorm.vision.data._images import ImageDataModule
from lightning_znorm.vision.data._splits import Split, Tensors, standardization

__all__ = ["CIFAR10"]

_MEAN, _STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class CIFAR10(ImageDataModule):
    """60,000 photographs of 32 x 32 pixels in ten classes, downloaded on demand (170 MB).

    50,000 are for training, of which ``val_size`` random ones are the validation split, and 10,000 for the test.

    Args:
        root: Folder with torchvision's ``cifar-10-batches-py``, or where to put it.
        batch_size: Images per batch.
        val_size: Images of the validation split.
        augment: Flip half of the training images and crop them after padding with 4 pixels.
        download: Fetch what is missing or damaged.
        num_workers: Worker processes per loader; ``None`` for one per CPU, at most 8.
        on_device: Keep everything on the Trainer's device and augment there.
        seed: Seed of the validation split and of the training order.

    Raises:
        RuntimeError: If a download fails, or data are missing or damaged and ``download`` is off.
        ValueError: If an argument is out of its range.

    Shapes:
        Images ``(N, 3, 32, 32)`` float32, standardized; labels ``(N,)`` int64 of 0 to 9.

    Reference:
        Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009. The augmentation is that of He et
        al., arXiv 1512.03385, Sec. 4.2.

    Example::

        >>> CIFAR10("data", batch_size=128).augmentation
        FlipAndCrop(padding=4)

    """

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 128,
        val_size: int = 5000,
        augment: bool = True,
        download: bool = True,
        num_workers: int | None = None,
        on_device: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, FlipAndCrop() if augment else None, num_workers, on_device, seed)
        self.root = Path(root).expanduser()
        self.val_size = require_count("val_size", val_size, least=1)
        self.download = download

    def prepare_data(self) -> None:
        """Download."""
        if self.download and not self._is_complete():
            with locked(self.root), explained(datasets.CIFAR10.url, self.root):
                archive = datasets.CIFAR10
                download_and_extract_archive(
                    archive.url, str(self.root), filename=archive.filename, md5=archive.tgz_md5
                )

    def _is_complete(self) -> bool:
        try:
            datasets.CIFAR10(str(self.root))
        except RuntimeError:
            return False
        return True

    def load(self, name: str) -> Split:
        """Read one split."""
        try:
            whole = datasets.CIFAR10(str(self.root), train=name != "test")
        except RuntimeError as error:
            folder = self.root / datasets.CIFAR10.base_folder
            raise DownloadError(
                f"CIFAR-10 is not in {folder}, or one of its files is damaged. Set `download=True`, or correct `root`."
            ) from error
        images, labels = torch.from_numpy(whole.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(whole.targets)
        if name != "test":
            if self.val_size >= len(images):
                raise ArgumentValueError(
                    f"Expected argument `val_size` to be less than the {len(images)} training images, but got"
                    f" {self.val_size!r}."
                )
            order = shuffled(len(images), self.seed)
            chosen = order[: self.val_size] if name == "val" else order[self.val_size :]
            images, labels = images[chosen], labels[chosen]
        return Split(Tensors(images, labels), *standardization(_MEAN, _STD))
