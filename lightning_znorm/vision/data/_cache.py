"""Decoded splits in files, for the next process."""

import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from lightning_znorm.errors import DataError
from lightning_znorm.vision.data._files import locked
from lightning_znorm.vision.data._splits import Tensors

__all__ = ["load_or_make"]


def load_or_make(
    folder: Path, settings: str, state: str, labels: Tensor, size: int | None, make: Callable[[], Tensors]
) -> Tensors:
    """Return a split from its file, which is made if it is missing, damaged, or not of these labels and this size.

    The file is named after the settings by which the split is read and the state of the images; it replaces those of
    other states.
    """
    path = folder / f"{settings}-{state}.pt"
    with locked(folder):
        if path.exists():
            try:
                return _load(path, labels, size)
            except Exception:  # of many kinds, as the file may hold anything
                warnings.warn(f"{path} is damaged or does not fit the images; it is made again.", stacklevel=2)
        whole = make()
        part = path.with_suffix(".part")
        with open(part, "wb") as file:
            torch.save({"images": whole.images, "targets": whole.targets}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        for outdated in folder.glob(f"{settings}-*"):
            if outdated != path:
                with suppress(OSError):
                    outdated.unlink()
        return _load(path, labels, size)


def _load(path: Path, labels: Tensor, size: int | None) -> Tensors:
    """Return what is in a file, if it is what it should be."""
    tensors = Tensors(**torch.load(path, mmap=True, weights_only=True))
    shape = tensors.images.shape
    expected = (len(labels), 3, *(shape[2:] if size is None else (size, size)))
    if tensors.images.dtype != torch.uint8 or len(shape) != 4 or shape != expected or 0 in shape:
        raise DataError(f"its images are {tensors.images.dtype} of shape {tuple(shape)}")
    if tensors.targets.dtype != torch.int64 or not torch.equal(tensors.targets, labels):
        raise DataError("its labels are not those of the folders")
    return tensors
