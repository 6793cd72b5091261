"""Images in folders named after their classes."""

import hashlib
import math
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import PIL
import torch
import torchvision
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn
from torch import Tensor
from torchvision.transforms.v2 import functional

from lightning_znorm.errors import ArgumentValueError, DataError, require_count, require_fraction, unknown_choice
from lightning_znorm.vision.data._augmentation import Augmentation, FlipAndCrop, FlipAndRotate, QuarterTurns
from lightning_znorm.vision.data._cache import load_or_make
from lightning_znorm.vision.data._files import existing, shuffled
from lightning_znorm.vision.data._images import ImageDataModule
from lightning_znorm.vision.data._overlap import describe_overlap
from lightning_znorm.vision.data._read import read_image
from lightning_znorm.vision.data._splits import Split, Tensors, standardization
from lightning_znorm.vision.data._tree import Tree

__all__ = ["ImageFolder"]

_AUGMENTATIONS: dict[str, type[Augmentation] | None] = {
    "none": None,
    "flip_and_crop": FlipAndCrop,
    "flip_and_rotate": FlipAndRotate,
    "quarter_turns": QuarterTurns,
}

# what decodes the images, and with them its version
_READERS = (PIL.__version__, torchvision.__version__)


class ImageFolder(ImageDataModule):
    """Images in a tree ``train/<class>/…``, ``valid/<class>/…``, ``test/<class>/…``.

    The folders may also be called ``training``, ``val`` or ``validation``, and ``testing``, in upper or lower case.
    Without a folder for it, the validation split is a random share of each class of the training folder. Classes are
    numbered in the alphabetical order of the training folder. Files and folders whose names start with a dot, and
    ``__MACOSX``, are skipped. An image that lies in two splits, as a copy or a link, causes a warning: whenever the
    training split is loaded, or, with ``cache``, whenever a split is decoded.

    Args:
        root: Folder of the tree.
        batch_size: Images per batch.
        image_size: Side in pixels to which the central square of each image is brought; ``None`` if all images have
            one size already.
        augment: ``"flip_and_crop"`` (photographs), ``"quarter_turns"`` (what has no upright, such as tissue),
            ``"flip_and_rotate"`` (by up to 15 degrees), or ``"none"``.
        val_share: Share of the training images for validation, where there is no folder for it.
        eval_per_class: At most so many random images of each class in the validation and the test split.
        mean: Of each channel, in [0, 1], with which the images are standardized; by default that of ImageNet.
        std: Of the same shape.
        window: For gray images of 16 or 32 bits, integers or floats, as in medicine: the two values that become black
            and white, for example ``(0, 4095)`` for 12 bits or ``(-100, 300)``. In between it is linear, beyond it is
            clipped. Without it such images are refused. Images of 8 bits stay as they are.
        num_workers: Worker processes per loader; ``None`` for one per CPU, at most 8.
        on_device: Keep everything on the Trainer's device and augment there.
        cache: With ``on_device``, a folder for the decoded splits, so that the next process need not decode them; one
            whose image files have changed is replaced. ``None`` for none.
        seed: Seed of the validation split and of the training order.

    Raises:
        FileNotFoundError: If a folder is missing, or a class has no image.
        ValueError: If an image cannot be read, or has another size than the first, several pages, more than 8 bits
            without a ``window``, or more pixels than ``PIL.Image.MAX_IMAGE_PIXELS``; if a split has two folders or
            another class than the training folder; if an argument is unknown or out of its range.

    Shapes:
        Images ``(N, 3, H, W)`` float32, standardized; labels ``(N,)`` int64.

    """

    def __init__(
        self,
        root: str,
        batch_size: int = 128,
        image_size: int | None = None,
        augment: Literal["none", "flip_and_crop", "flip_and_rotate", "quarter_turns"] = "flip_and_crop",
        val_share: float = 0.1,
        eval_per_class: int | None = None,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        window: tuple[float, float] | None = None,
        num_workers: int | None = None,
        on_device: bool = False,
        cache: str | None = None,
        seed: int = 0,
    ) -> None:
        if augment not in _AUGMENTATIONS:
            raise unknown_choice("augment", augment, _AUGMENTATIONS)
        kind = _AUGMENTATIONS[augment]
        super().__init__(batch_size, None if kind is None else kind(), num_workers, on_device, seed)
        self.root = root
        self.image_size = None if image_size is None else require_count("image_size", image_size, least=1)
        self.val_share = require_fraction("val_share", val_share)
        self.eval_per_class = (
            None if eval_per_class is None else require_count("eval_per_class", eval_per_class, least=1)
        )
        for argument, figures in (("mean", mean), ("std", std)):
            if len(figures) != 3:
                raise ArgumentValueError(f"Expected argument `{argument}` to have three entries, but got {figures!r}.")
        self.mean, self.std = tuple(mean), tuple(std)
        self.window = None if window is None else _check_window(window)
        self.cache = cache
        self.classes: list[str] = []
        self._is_compared = False

    def load(self, name: str) -> Split:
        """List the files of one split, or take them from the cache."""
        tree = self._tree
        self.classes = tree.classes
        by_class = self._share_out(name)
        if name == "val" and "val" not in tree.folders:
            rank_zero_info(
                f"{tree.root} has no folder `valid`: {sum(map(len, by_class))} images of `{tree.folders['train'].name}`"
                f" are held out for validation (`val_share`: {self.val_share} of each class)."
            )
        samples = Files(self._choose(by_class, name), self.image_size, self.window)
        figures = standardization(self.mean, self.std)
        if self.on_device and self.cache is not None:
            return Split(self._load_or_make(name, samples), *figures)
        if name == "train" and getattr(rank_zero_only, "rank", 0) == 0:
            self._compare_splits()
        return Split(samples, *figures)

    @cached_property
    def _tree(self) -> Tree:
        tree = Tree(existing(self.root, "root", "It is the folder that `train` lies in."))
        for folder in tree.unread():
            rank_zero_warn(
                f"{folder} has folders of classes, but is not read: its name is not that of a split (`train`, `valid`,"
                " `test`). Rename it if it is one, or move it elsewhere."
            )
        return tree

    def _share_out(self, name: str) -> list[list[Path]]:
        """Return the images of each class that belong to a split."""
        if name == "test" or "val" in self._tree.folders:
            return self._tree.images(name)
        return [self._hold_out(images, wants_held_out=name == "val") for images in self._tree.images("train")]

    def _hold_out(self, images: list[Path], wants_held_out: bool) -> list[Path]:
        """Return the training or the validation part of a class's training images."""
        count = max(1, round(self.val_share * len(images)))
        if count == len(images):
            raise DataError(
                f"The class folder {images[0].parent} has {len(images)} image(s), too few to hold some out for"
                " validation. Add images, or a folder `valid`."
            )
        order = shuffled(len(images), self.seed)
        return [images[number] for number in sorted(order[:count] if wants_held_out else order[count:])]

    def _choose(self, by_class: list[list[Path]], name: str) -> list[tuple[Path, int]]:
        """Return the images that are used, with their labels."""
        if name != "train" and self.eval_per_class is not None:
            orders = [shuffled(len(images), self.seed)[: self.eval_per_class] for images in by_class]
            pairs = zip(by_class, orders, strict=True)
            by_class = [[images[number] for number in sorted(order)] for images, order in pairs]
        return [(path, label) for label, images in enumerate(by_class) for path in images]

    def _compare_splits(self) -> None:
        """Warn of images that lie in two splits, once."""
        if self._is_compared:
            return
        self._is_compared = True
        splits = {}
        for split in ("train", "val", "test"):
            with suppress(FileNotFoundError, ValueError):  # a split's errors are raised when it is loaded
                splits[split] = [path for path, _ in self._choose(self._share_out(split), split)]
        overlap = describe_overlap(splits)
        if overlap is not None:
            warnings.warn(overlap, stacklevel=2)

    def _load_or_make(self, name: str, samples: "Files") -> Tensors:
        """Return the samples from the cache."""

        def make() -> Tensors:
            self._compare_splits()
            return self.read_whole(name, samples)

        chosen_by = (
            (self.val_share, self.seed) if name != "test" and "val" not in self._tree.folders else None,
            (self.eval_per_class, self.seed) if name != "train" and self.eval_per_class is not None else None,
        )
        settings = _digest(str(self._tree.root.absolute()), chosen_by, self.image_size, self.window, *_READERS)
        labels = torch.tensor([label for _, label in samples.files])
        return load_or_make(
            Path(self.cache or "").expanduser(),
            f"{name}-{settings}",
            samples.fingerprint(),
            labels,
            self.image_size,
            make,
        )


class Files:
    """Image files with labels, decoded when they are asked for.

    Args:
        files: Paths and labels.
        size: As ``image_size`` of :class:`ImageFolder`.
        window: As of :class:`ImageFolder`.

    """

    def __init__(
        self, files: list[tuple[Path, int]], size: int | None, window: tuple[float, float] | None = None
    ) -> None:
        self.files = files
        self.size = size
        self.window = window
        self._shape: Any = None if size is None else (3, size, size)

    def __len__(self) -> int:
        return len(self.files)

    def fingerprint(self) -> str:
        """Return what changes with the files and their labels."""
        states = []
        for path, label in self.files:
            try:
                status = path.stat()
            except OSError as error:
                raise DataError(f"{path} is not a readable image ({error}). Replace it, or remove it.") from error
            states.append((str(path.absolute()), label, status.st_size, status.st_mtime_ns))
        return _digest(states)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        path, label = self.files[index]
        image = read_image(path, self.window)
        if self.size is not None:
            square = functional.center_crop(image, [min(image.shape[1:])])
            image = functional.resize(square, [self.size], antialias=True)
        elif self._shape is None:
            self._shape = read_image(self.files[0][0], self.window).shape
        if image.shape != self._shape:
            raise DataError(
                f"{path} has {image.shape[1]} x {image.shape[2]} pixels, but {self.files[0][0]} has {self._shape[1]} x"
                f" {self._shape[2]}. Set `image_size`."
            )
        return image, torch.tensor(label)


def _digest(*values: Any) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:16]


def _check_window(window: Sequence[float]) -> tuple[float, float]:
    try:
        low, high = (float(value) for value in window)
    except (TypeError, ValueError):
        low = high = math.nan
    if not -math.inf < low < high < math.inf:
        raise ArgumentValueError(
            f"Expected argument `window` to be two finite numbers, the lower one first, but got {window!r}."
        )
    return low, high
