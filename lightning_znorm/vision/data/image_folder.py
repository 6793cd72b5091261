"""Images in folders named after their classes."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import PIL
import torch
import torchvision
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms.v2 import functional

from lightning_znorm.vision._choices import unknown_choice
from lightning_znorm.vision.data._arguments import at_least, between
from lightning_znorm.vision.data._augmentation import Augmentation, FlipAndCrop, FlipAndRotate, QuarterTurns
from lightning_znorm.vision.data._files import alone_in, existing, read_image, shuffled
from lightning_znorm.vision.data._images import ImageDataModule
from lightning_znorm.vision.data._splits import Split, Tensors, standardization

__all__ = ["ImageFolder"]

_AUGMENTATIONS: dict[str, type[Augmentation] | None] = {
    "none": None,
    "flip_and_crop": FlipAndCrop,
    "flip_and_rotate": FlipAndRotate,
    "quarter_turns": QuarterTurns,
}
_NAMES = {"train": ("train",), "val": ("valid", "val"), "test": ("test",)}


class ImageFolder(ImageDataModule):
    """Images in a tree ``train/<class>/…``, ``valid/<class>/…`` (or ``val/…``), ``test/<class>/…``.

    Without a folder for it, the validation split is a random share of each class of the training folder. Classes are
    numbered in the alphabetical order of the training folder.

    Args:
        root: Folder of the tree.
        batch_size: Images per batch.
        image_size: The shorter side is brought to so many pixels, and the centre is cut out; ``None`` if all images
            have one size already.
        augment: ``"flip_and_crop"`` (photographs), ``"quarter_turns"`` (what has no upright, such as tissue),
            ``"flip_and_rotate"`` (by up to 15 degrees), or ``"none"``.
        val_share: Share of the training images for validation, where there is no folder for it.
        eval_per_class: At most so many random images of each class in the validation and the test split.
        mean: Of each channel, in [0, 1], with which the images are standardized; by default that of ImageNet.
        std: Likewise.
        num_workers: Worker processes per loader; ``None`` for one per CPU, at most 8.
        on_device: Keep everything on the Trainer's device and augment there.
        cache: With ``on_device``, a folder for the decoded splits, so that the next process need not decode them; one
            whose files have changed is decoded anew. ``None`` for none.
        seed: Seed of the validation split and of the training order.

    Raises:
        FileNotFoundError: If a folder is missing, or a class has no image.
        ValueError: If an image cannot be read or has another size than the first, a split has another class than the
            training folder, or an argument is unknown or out of its range.

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
        self.image_size = None if image_size is None else at_least("image_size", image_size, 1)
        self.val_share = between("val_share", val_share, 0, 1)
        self.eval_per_class = None if eval_per_class is None else at_least("eval_per_class", eval_per_class, 1)
        for argument, figures in (("mean", mean), ("std", std)):
            if len(figures) != 3:
                raise ValueError(f"Expected argument `{argument}` to have three entries, but got {figures!r}.")
        self.mean, self.std = tuple(mean), tuple(std)
        self.cache = cache
        self.classes: list[str] = []

    def load(self, name: str) -> Split:
        """List the files of one split."""
        root = existing(self.root, "root", "It is the folder that `train` lies in.")
        train = existing(root / "train", "root", "It must have a folder `train` with one folder per class.")
        self.classes = _classes(train)
        folder = next((root / each for each in _NAMES[name] if (root / each).is_dir()), None)
        if folder is None and name != "val":
            raise FileNotFoundError(f"Argument `root` is {str(self.root)!r}, but there is no folder {root / name}.")
        by_class = _find_images(folder or train, self.classes)
        if folder is None or (name == "train" and not any((root / each).is_dir() for each in _NAMES["val"])):
            by_class = [self._hold_out(own, wants_held_out=name == "val") for own in by_class]
        if name != "train" and self.eval_per_class is not None:
            orders = [shuffled(len(own), self.seed)[: self.eval_per_class] for own in by_class]
            by_class = [[own[number] for number in sorted(order)] for own, order in zip(by_class, orders, strict=True)]
        files = [(path, label) for label, own in enumerate(by_class) for path in own]
        samples = Files(files, self.image_size)
        if self.on_device and self.cache is not None:
            return Split(self._cached(name, samples), *standardization(self.mean, self.std))
        return Split(samples, *standardization(self.mean, self.std))

    def _cached(self, name: str, samples: "Files") -> Tensors:
        """Return the samples from the cache, which is filled if need be."""
        folder = Path(self.cache or "").expanduser()
        path = folder / f"{name}-{samples.fingerprint()}.pt"
        with alone_in(folder):
            if path.exists():
                try:
                    return _load(path)
                except (OSError, RuntimeError, ValueError, EOFError, UnpicklingError):  # cut short by a crash, say
                    rank_zero_warn(f"{path} is damaged, and is made anew.")
            whole = self.read_whole(name, samples)
            part = path.with_suffix(".part")
            with open(part, "wb") as file:
                torch.save({"images": whole.images, "targets": whole.targets}, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
            return _load(path)

    def _hold_out(self, own: list[Path], wants_held_out: bool) -> list[Path]:
        """Return the training or the validation part of a class's training images."""
        count = max(1, round(self.val_share * len(own)))
        if count == len(own):
            raise ValueError(
                f"The class folder {own[0].parent} has {len(own)} image(s), too few to hold some out for validation."
                " Add images, or a folder `valid`."
            )
        order = shuffled(len(own), self.seed)
        return [own[number] for number in sorted(order[:count] if wants_held_out else order[count:])]


class Files:
    """Image files with labels, decoded when they are asked for.

    Args:
        files: Paths and labels.
        size: As ``image_size`` of :class:`ImageFolder`.

    """

    def __init__(self, files: list[tuple[Path, int]], size: int | None) -> None:
        self.files = files
        self.size = size
        self._shape: Any = None if size is None else (3, size, size)

    def __len__(self) -> int:
        return len(self.files)

    def fingerprint(self) -> str:
        """Return what changes with the files, their labels, the size, and the packages that read them."""
        files = [
            (str(path.absolute()), label, (status := path.stat()).st_size, status.st_mtime_ns)
            for path, label in self.files
        ]
        about = repr((self.size, files, PIL.__version__, torchvision.__version__))
        return hashlib.sha256(about.encode()).hexdigest()[:16]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        path, label = self.files[index]
        image = read_image(path, "RGB")
        if self.size is not None:
            image = functional.center_crop(functional.resize(image, [self.size], antialias=True), [self.size])
        elif self._shape is None:
            self._shape = read_image(self.files[0][0], "RGB").shape
        if image.shape != self._shape:
            raise ValueError(
                f"{path} has {image.shape[1]} x {image.shape[2]} pixels, but {self.files[0][0]} has {self._shape[1]} x"
                f" {self._shape[2]}. Set `image_size`."
            )
        return image, torch.tensor(label)


def _load(path: Path) -> Tensors:
    return Tensors(**torch.load(path, mmap=True, weights_only=True))


def _classes(train: Path) -> list[str]:
    classes = sorted(path.name for path in train.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(classes) < 2:
        raise FileNotFoundError(f"Expected at least two class folders in {train}, but found {classes}.")
    return classes


def _find_images(folder: Path, classes: list[str]) -> list[list[Path]]:
    """Return the images of each class, sorted by name."""
    unknown = {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")} - {*classes}
    if unknown:
        raise ValueError(f"The class folder {folder / min(unknown)} has no counterpart in `train`.")
    found = []
    for name in classes:
        own = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in IMG_EXTENSIONS)
        if not own:
            raise FileNotFoundError(
                f"The class folder {folder / name} is missing or has no image. Supported are"
                f" {', '.join(IMG_EXTENSIONS)}."
            )
        found.append(own)
    return found
