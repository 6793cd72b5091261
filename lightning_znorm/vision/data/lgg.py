"""LGG: brain MRI with masks of lower-grade gliomas."""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchvision.transforms.v2 import functional

from lightning_znorm.errors import ArgumentValueError, DataError, MissingFileError, require_count, require_fraction
from lightning_znorm.vision.data._augmentation import FlipAndRotate
from lightning_znorm.vision.data._files import existing, shuffled
from lightning_znorm.vision.data._images import ImageDataModule
from lightning_znorm.vision.data._read import read_image, read_mask
from lightning_znorm.vision.data._splits import Split, Tensors

__all__ = ["LGGSegmentation"]

_PATIENTS, _SLICES = 110, 3929

_HINT = (
    "It is the folder `kaggle_3m` of the data set `mateuszbuda/lgg-mri-segmentation` on Kaggle, as unpacked, or the one"
    " that `kaggle_3m` lies in."
)


class LGGSegmentation(ImageDataModule):
    """MRI slices of 110 patients with lower-grade glioma and masks of the tumor, from the folder ``kaggle_3m``.

    The patients, not the slices, are dealt out to the splits; folders whose names differ only in the date at the end
    are of one patient. Each channel of a folder's volume (pre-contrast, FLAIR, post-contrast) is standardized by the
    mean and the standard deviation over all its slices. A mask is black except for the tumor, which has any one value
    or color.

    Args:
        root: ``kaggle_3m``, or the folder that it lies in.
        batch_size: Slices per batch.
        image_size: Side to which the slices are brought, in pixels; they are square.
        only_tumor: Leave out the slices without tumor, from all splits.
        val_share: Share of the patients in the validation split.
        test_share: Share of the patients in the test split.
        augment: Flip half of the training slices and turn them by up to 15 degrees.
        patients: Give validation and test batches a third tensor, the number of each slice's patient, from which
            ``SemanticSegmenter`` computes ``dice_per_case``; False for modules that expect pairs.
        num_workers: Worker processes per loader; the slices are in memory.
        on_device: Keep everything on the Trainer's device and augment there.
        seed: Seed of the split and of the training order.

    Raises:
        FileNotFoundError: If the folder, a slice, a mask or a patient of ``data.csv`` is missing.
        ValueError: If a file cannot be read, has another size than its neighbors, or more than 8 bits (a slice) or two
            values (a mask); if an argument is out of its range.

    Shapes:
        Slices ``(N, 3, image_size, image_size)`` float32; masks ``(N, 1, image_size, image_size)`` float32 of 0 and 1;
        in validation and test, patients ``(N,)`` int64: the position in the sorted list of all.

    Reference:
        Buda et al., *Association of genomic subtypes of lower-grade gliomas with shape features automatically extracted
        by a deep learning algorithm*, Computers in Biology and Medicine 109, 2019.

    """

    def __init__(
        self,
        root: str = "data/kaggle_3m",
        batch_size: int = 16,
        image_size: int = 128,
        only_tumor: bool = False,
        val_share: float = 0.15,
        test_share: float = 0.15,
        augment: bool = True,
        patients: bool = True,
        num_workers: int | None = 0,
        on_device: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, FlipAndRotate() if augment else None, num_workers, on_device, seed)
        self.root = Path(root).expanduser()
        self.image_size = require_count("image_size", image_size, least=16)
        self.only_tumor = only_tumor
        self.val_share = require_fraction("val_share", val_share)
        self.test_share = require_fraction("test_share", test_share)
        self.patients = patients

    def load(self, name: str) -> Split:
        """Read the volumes of the patients of one split."""
        patients = find_patients(self.root)
        chosen = self._share_out(range(len(patients)))[name]
        folders = [(number, folder) for number in chosen for folder in patients[number]]
        volumes = [read_volume(folder, self.image_size) for _, folder in folders]
        counts = torch.tensor([len(volume.images) for volume in volumes])
        images, masks = (torch.cat([getattr(volume, part) for volume in volumes]) for part in ("images", "masks"))
        mean, std = (torch.stack([getattr(volume, figure) for volume in volumes]) for figure in ("mean", "std"))
        by_slice = [mean, std, torch.tensor([number for number, _ in folders])]
        mean, std, cases = (figure.repeat_interleave(counts, dim=0) for figure in by_slice)
        with_tumor = masks.flatten(1).amax(dim=1) > 0
        if self.only_tumor:
            if not with_tumor.any():
                raise ArgumentValueError(
                    f"Argument `only_tumor`: none of the {len(chosen)} patient(s) of the split `{name}` has a tumor."
                    " Set `only_tumor=False`, or choose another `seed` or larger shares."
                )
            images, masks, mean, std, cases = (part[with_tumor] for part in (images, masks, mean, std, cases))
        elif not with_tumor.any():
            rank_zero_warn(
                f"No mask of the split `{name}` ({len(masks)} slices of {len(chosen)} patient(s) in {self.root}) has a"
                " tumor: nothing can be learned from it, and its Dice coefficient says nothing. Are these the right"
                " masks?"
            )
        elif (share := masks.float().mean()) > 0.5:
            rank_zero_warn(
                f"In the masks of the split `{name}` most pixels are tumor ({share:.0%}). Are they inverted? The"
                " background must be black."
            )
        return Split(Tensors(images, masks), mean, std, cases if self.patients else None)

    def _share_out(self, patients: Sequence[int]) -> dict[str, list[int]]:
        order = [patients[number] for number in shuffled(len(patients), self.seed)]
        val, test = (max(1, round(share * len(order))) for share in (self.val_share, self.test_share))
        if val + test >= len(order):
            raise ArgumentValueError(
                f"Arguments `val_share` ({self.val_share}) and `test_share` ({self.test_share}) leave none of"
                f" {len(order)} patients for training."
            )
        return {"val": order[:val], "test": order[val : val + test], "train": order[val + test :]}


@dataclass(frozen=True)
class Volume:
    """The slices of one folder: a patient at one date.

    Attributes:
        images: ``(slices, 3, size, size)`` uint8.
        masks: ``(slices, 1, size, size)`` uint8 of 0 and 1.
        mean: ``(3,)``, of the channels.
        std: Of the same shape; 1 where a channel is constant.

    """

    images: Tensor
    masks: Tensor
    mean: Tensor
    std: Tensor

    channels: ClassVar[tuple[str, ...]] = ("pre-contrast", "FLAIR", "post-contrast")


def find_patients(root: Path) -> list[list[Path]]:
    """Return the folders of each patient, sorted by name; usually each has one.

    Raises:
        FileNotFoundError: If there are none, fewer than ``data.csv`` lists, or slices of the whole set are missing.
        ValueError: If ``data.csv`` is not what it should be.

    """
    folder = existing(root, "root", _HINT)
    if (folder / "kaggle_3m").is_dir():
        folder = folder / "kaggle_3m"
    patients: dict[str, list[Path]] = {}
    for path in sorted(path for path in folder.iterdir() if path.is_dir() and path.name.startswith("TCGA_")):
        patients.setdefault(re.sub(r"_\d{8}$", "", path.name), []).append(path)
    if not patients:
        raise MissingFileError(f"There is no folder `TCGA_…` in {folder}. {_HINT}")
    table = folder / "data.csv"
    if table.exists():
        _check_table(table, patients)
    return list(patients.values())


def _check_table(table: Path, patients: dict[str, list[Path]]) -> None:
    """Raise if patients of ``data.csv`` are missing, or slices of the whole set."""
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if "Patient" not in (rows.fieldnames or ()):
                raise DataError("no column `Patient`")
            listed = [row["Patient"] for row in rows]
    except (ValueError, csv.Error) as error:  # also of another encoding
        raise DataError(
            f"{table} is not the table of the data set: it has no readable column `Patient`. Replace it, or remove"
            " it to use the existing patients."
        ) from error
    names = {*patients, *(folder.name for folders in patients.values() for folder in folders)}
    missing = [name for name in listed if name not in names]
    if missing:
        raise MissingFileError(
            f"{table} lists {len(listed)} patients, but {len(missing)} of them have no folder in {table.parent}, such"
            f" as {missing[0]}. Unpack the whole set, or remove data.csv to use the existing part."
        )
    if len(listed) == _PATIENTS == len(patients):
        files = [key for folders in patients.values() for folder in folders for key in _find_slices(folder)]
        slices = sum(is_mask for _, is_mask in files)
        if slices != _SLICES:
            raise MissingFileError(
                f"{table.parent} has {slices} masks of {_PATIENTS} patients, but the data set has {_SLICES}. Unpack the"
                " whole set, or remove data.csv to use the existing slices."
            )


def read_volume(folder: Path, size: int) -> Volume:
    """Read the slices and masks of a folder.

    Args:
        folder: With files ``<name>_<number>.tif`` and ``<name>_<number>_mask.tif``, numbered from 1.
        size: Side to which they are brought, in pixels.

    Raises:
        FileNotFoundError: If one is missing.
        ValueError: If one cannot be read, is not square, has another size than the others, or is there twice.

    """
    images: list[Tensor] = []
    masks: list[Tensor] = []
    shape: tuple[int, ...] = ()
    for pair in _list_slices(folder):
        for path, read, parts in zip(pair, (read_image, read_mask), (images, masks), strict=True):
            pixels = read(path)
            shape = shape or pixels.shape[-2:]
            if pixels.shape[-2:] != shape or shape[0] != shape[1]:
                raise DataError(
                    f"{path} has {pixels.shape[-2]} x {pixels.shape[-1]} pixels, expected {shape[0]} x {shape[0]}: all"
                    " slices and masks of a patient must be square and of one size. Crop or resize them."
                )
            parts.append(pixels)
    volume = torch.stack(images)
    mean, std = volume.double().mean(dim=(0, 2, 3)), volume.double().std(dim=(0, 2, 3), correction=0)
    resized = functional.resize(volume, [size, size], antialias=True)
    covered = functional.resize(255 * torch.stack(masks), [size, size], antialias=True) >= 128
    return Volume(resized, covered.to(torch.uint8), mean.float(), torch.where(std > 0, std, 1.0).float())


def _find_slices(folder: Path) -> dict[tuple[int, bool], Path]:
    """Return the slices and masks (``True``) of a folder by their numbers."""
    pattern = re.compile(re.escape(folder.name) + r"_(\d+)(_mask)?\.(?i:tiff?)")
    slices: dict[tuple[int, bool], Path] = {}
    for path in sorted(folder.iterdir()):
        if match := pattern.fullmatch(path.name):
            key = int(match[1]), match[2] is not None
            if key in slices:
                raise DataError(f"{slices[key]} and {path} are the same slice by their names. Remove one.")
            slices[key] = path
    return slices


def _list_slices(folder: Path) -> list[tuple[Path, Path]]:
    """Return each slice with its mask, in the order of their numbers."""
    slices = _find_slices(folder)
    if first := slices.get((0, False)) or slices.get((0, True)):
        raise DataError(f"{first} has the number 0, but slices are numbered from 1. Number them again.")
    count = max((number for number, _ in slices), default=0)
    if count == 0:
        raise MissingFileError(f"There is no slice `{folder.name}_1.tif` in {folder}. {_HINT}")
    for number in range(1, count + 1):
        for is_mask in (False, True):
            if (number, is_mask) not in slices:
                missing = f"{folder.name}_{number}{'_mask' if is_mask else ''}.tif"
                raise MissingFileError(
                    f"{folder / missing} is missing, while the patient has slices up to number {count}: the copy of"
                    " the data is incomplete. Unpack the whole set."
                )
    return [(slices[number, False], slices[number, True]) for number in range(1, count + 1)]
