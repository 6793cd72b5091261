"""PatchCamelyon."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets

from lightning_znorm.errors import DataError, FileError, MissingFileError, require_packages
from lightning_znorm.vision.data._augmentation import QuarterTurns
from lightning_znorm.vision.data._files import fetch_gzip, locked
from lightning_znorm.vision.data._images import ImageDataModule
from lightning_znorm.vision.data._splits import Split, standardization

__all__ = ["PCam"]

_SIDE = 96
_MEAN, _STD = (0.7008, 0.5384, 0.6916), (0.2350, 0.2774, 0.2129)


class PCam(ImageDataModule):
    """327,680 patches of lymph nodes, 96 x 96 pixels, with or without tumor tissue; downloaded on demand (8 GB).

    Split as published: 262,144 for training, 32,768 each for validation and test. Patches are read from the HDF5 files
    one by one, unless ``on_device`` is set, which takes 9 GB for all splits.

    Args:
        root: Folder with torchvision's ``pcam``, or where to put it.
        batch_size: Patches per batch.
        augment: Flip and turn the training patches by quarter turns.
        download: Fetch what is missing.
        num_workers: Worker processes per loader; ``None`` for one per CPU, at most 8.
        on_device: Keep everything on the Trainer's device and augment there.
        seed: Seed of the training order.

    Raises:
        RuntimeError: If a download fails.
        FileNotFoundError: If a file is missing and ``download`` is off.
        ValueError: If a file is damaged or has other data than PCam's, or an argument is out of its range.
        ModuleNotFoundError: If h5py is not installed.

    Shapes:
        Images ``(N, 3, 96, 96)`` float32, standardized; labels ``(N,)`` int64, 1 for tumor in the center.

    Reference:
        Veeling et al., *Rotation Equivariant CNNs for Digital Pathology*, arXiv 1806.03962.

    Example::

        >>> PCam("data", batch_size=64).augmentation
        QuarterTurns()

    """

    url = "https://zenodo.org/records/2546921/files"

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 128,
        augment: bool = True,
        download: bool = True,
        num_workers: int | None = None,
        on_device: bool = False,
        seed: int = 0,
    ) -> None:
        require_packages("`PCam`", "paper", "h5py")
        super().__init__(batch_size, QuarterTurns() if augment else None, num_workers, on_device, seed)
        self.root = Path(root).expanduser()
        self.download = download

    @property
    def folder(self) -> Path:
        """Where torchvision keeps the files, too."""
        return self.root / "pcam"

    def prepare_data(self) -> None:
        """Download and unpack."""
        files = [(name, md5) for kinds in datasets.PCAM._FILES.values() for name, _, md5 in kinds.values()]
        if self.download and not all((self.folder / name).exists() for name, _ in files):
            with locked(self.folder):
                for name, md5 in files:
                    fetch_gzip(f"{self.url}/{name}.gz?download=1", self.folder / name, md5)

    def load(self, name: str) -> Split:
        """Open one split."""
        images, targets = (self.folder / datasets.PCAM._FILES[name][kind][0] for kind in ("images", "targets"))
        return Split(Patches(images, targets), *standardization(_MEAN, _STD))


class Patches:
    """Images and labels in a pair of HDF5 files; that of the images is opened when the first is asked for.

    Args:
        images: File with ``x`` of shape ``(N, 96, 96, 3)``, uint8.
        targets: File with ``y`` of shape ``(N, 1, 1, 1)``, integers of 0 and 1.

    Raises:
        FileNotFoundError: If one is missing.
        ValueError: If one is damaged, has other data, or they do not fit each other.

    """

    def __init__(self, images: Path, targets: Path) -> None:
        self.path = images
        labels = _read_labels(targets)
        with contextlib.closing(_open(images)) as file:
            data = _find(file, "x")
            shape, dtype = tuple(data.shape), data.dtype
        if shape[1:] != (_SIDE, _SIDE, 3) or shape[0] == 0 or dtype != np.uint8:
            raise DataError(
                f"{images} has patches of shape {shape} and dtype {dtype}, expected (N, {_SIDE}, {_SIDE}, 3) with N > 0"
                " and uint8. It is not PCam's: remove it and download it again."
            )
        if shape[0] != len(labels):
            raise DataError(
                f"{images} has {shape[0]} patches, but {targets} {len(labels)} labels. They do not belong together:"
                " remove both and download them again."
            )
        self.labels = torch.from_numpy(labels.astype(np.int64))
        self._data: Any = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if self._data is None:
            self._data = _find(_open(self.path), "x")
        with _explained(self.path):
            patch = self._data[index]
        return torch.from_numpy(patch).permute(2, 0, 1).contiguous(), self.labels[index]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_data": None}


def _read_labels(path: Path) -> np.ndarray[Any, Any]:
    """Return the labels of a file, checked."""
    with contextlib.closing(_open(path)) as file:
        data = _find(file, "y")
        if data.shape[1:] != (1, 1, 1) or data.dtype.kind not in "iu":
            raise DataError(
                f"{path} has labels of shape {tuple(data.shape)} and dtype {data.dtype}, expected (N, 1, 1, 1) and"
                " integers. It is not PCam's: remove it and download it again."
            )
        with _explained(path):
            labels: np.ndarray[Any, Any] = data[:].reshape(-1)
    if not np.isin(labels, (0, 1)).all():
        raise DataError(
            f"{path} has labels from {labels.min()} to {labels.max()}, expected 0 and 1 only. It is not PCam's: remove"
            " it and download it again."
        )
    return labels


def _open(path: Path) -> Any:
    """Return an open HDF5 file."""
    import h5py

    if not path.exists():
        raise MissingFileError(f"There is no {path}. Set `download=True`, or correct `root`.")
    with _explained(path):
        return h5py.File(path)


def _find(file: Any, name: str) -> Any:
    """Return a data set of an HDF5 file, unread."""
    import h5py

    path = Path(file.filename)
    with _explained(path):
        data = file[name]
    if not isinstance(data, h5py.Dataset):
        raise DataError(
            f"{path} has no data set `{name}`, but a {type(data).__name__.lower()} of this name. It is not PCam's:"
            " remove it and download it again."
        )
    return data


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Name the file in HDF5's errors, and tell those of the file from those of the system."""
    try:
        yield
    except (OSError, KeyError) as error:
        if not isinstance(error, OSError) or error.errno is None:
            raise DataError(f"{path} is damaged ({error}). Remove it and download it again.") from error
        remedy = ""
        if isinstance(error, BlockingIOError):
            remedy = " On a network file system, try again with HDF5_USE_FILE_LOCKING=FALSE in the environment."
        raise FileError(error.errno, f"{path} cannot be read ({error}).{remedy}") from error
