"""Files and folders: found or fetched, in one piece or not at all."""

import gzip
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError

import torch
from filelock import FileLock
from torchvision.datasets.utils import download_url
from tqdm import tqdm

from lightning_znorm.errors import DownloadError, MissingFileError


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create a folder, and let no other process that asks for it in at the same time."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        yield


@contextmanager
def explained(url: str, folder: Path) -> Iterator[None]:
    """Turn what goes wrong in a download into an error that says what to do."""
    try:
        yield
    except (URLError, OSError) as error:
        raise DownloadError(
            f"The download of {url} failed: {error}. Try again (what is complete is not fetched again), or put the file"
            f" into {folder} by hand."
        ) from error
    except RuntimeError as error:
        raise DownloadError(
            f"What came from {url} into {folder} is incomplete or not what it should be (its MD5 differs). Try again:"
            " it will be fetched again."
        ) from error


def fetch_gzip(url: str, path: Path, md5: str) -> None:
    """Download and unpack a file, which appears when it is complete; the archive is checked, and removed in the end."""
    if path.exists():
        return
    archive = path.with_name(path.name + ".gz")
    with explained(url, path.parent):
        download_url(url, path.parent, archive.name, md5)
    part = path.with_name(path.name + ".part")
    total = archive.stat().st_size
    with (
        open(archive, "rb") as packed,
        gzip.open(packed) as source,
        open(part, "wb") as target,
        tqdm(total=total, desc=f"Unpacking {path.name}", unit="B", unit_scale=True, delay=2) as progress,
    ):
        while chunk := source.read(1 << 22):
            target.write(chunk)
            progress.update(packed.tell() - progress.n)
    os.replace(part, path)
    archive.unlink()


def existing(folder: str | os.PathLike[str], argument: str, hint: str) -> Path:
    """Return a folder, or raise an error that names the argument if there is none."""
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise MissingFileError(f"Argument `{argument}` is {str(folder)!r}, but {path.absolute()} is no folder. {hint}")
    return path


def shuffled(count: int, seed: int) -> list[int]:
    """Return the numbers below ``count`` in a random order that depends on the seed alone."""
    order: list[int] = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return order
