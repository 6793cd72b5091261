"""Where the images of a tree `<split>/<class>/…` lie."""

import os
from collections.abc import Iterator
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from lightning_znorm.errors import DataError, MissingFileError

__all__ = ["Tree"]

_NAMES = {
    "train": ("train", "training"),
    "val": ("valid", "val", "validation"),
    "test": ("test", "testing"),
}


class Tree:
    """The folders of the splits that exist, the sorted names of the classes in ``train``, and the images."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._images: dict[str, list[list[Path]]] = {}
        self.folders: dict[str, Path] = {}
        for folder in _subfolders(root):
            split = next((split for split, names in _NAMES.items() if folder.name.lower() in names), None)
            if split in self.folders:
                raise DataError(
                    f"{self.folders[split]} and {folder} are both folders of the {split} split. Merge them, or move one"
                    " elsewhere."
                )
            if split is not None:
                self.folders[split] = folder
        if "train" not in self.folders:
            raise MissingFileError(
                f"There is no folder {root / 'train'}. Argument `root` must name a folder in which `train` lies, with"
                " one folder per class."
            )
        self.classes = [folder.name for folder in _subfolders(self.folders["train"])]
        if len(self.classes) < 2:
            raise MissingFileError(
                f"Expected at least two class folders in {self.folders['train']}, but found {self.classes}. Add a"
                " folder for each class."
            )

    def images(self, split: str) -> list[list[Path]]:
        """Return the images of each class, sorted by name; they are listed once."""
        if split not in self._images:
            self._images[split] = self._list_images(split)
        return self._images[split]

    def _list_images(self, split: str) -> list[list[Path]]:
        if split not in self.folders:
            raise MissingFileError(f"There is no folder {self.root / split}. Add it, with one folder per class.")
        folder = self.folders[split]
        unknown = [path for path in _subfolders(folder) if path.name not in self.classes]
        if unknown:
            raise DataError(
                f"The class folder {unknown[0]} has no counterpart in {self.folders['train']}. Rename it, remove it, or"
                " add training images."
            )
        by_class = [sorted(_walk(folder / name), key=lambda path: path.parts) for name in self.classes]
        for name, images in zip(self.classes, by_class, strict=True):
            if not images:
                raise MissingFileError(
                    f"The class folder {folder / name} is missing or has no image. Add images; supported are"
                    f" {', '.join(IMG_EXTENSIONS)}."
                )
        return by_class

    def unread(self) -> list[Path]:
        """Return the folders that look like a split, as they have a folder of a class, but are none."""
        others = [folder for folder in _subfolders(self.root) if folder not in self.folders.values()]
        return [folder for folder in others if any((folder / name).is_dir() for name in self.classes)]


def _walk(folder: Path) -> Iterator[Path]:
    for path, folders, names in os.walk(folder):
        parent = Path(path)
        folders[:] = [name for name in folders if not _is_hidden(name)]
        for name in names:
            if os.path.splitext(name)[1].lower() in IMG_EXTENSIONS and not _is_hidden(name):
                yield parent / name


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not _is_hidden(path.name))


def _is_hidden(name: str) -> bool:
    """Tell whether a file or folder is none of the data, such as those that macOS puts into archives."""
    return name.startswith(".") or name == "__MACOSX"
