"""Files that lie in more than one split."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

__all__ = ["describe_overlap"]

_MOST_READ = 200_000
_END = 64  # bytes


class _File(NamedTuple):
    split: str
    path: Path
    size: int
    inode: tuple[int, int]


def describe_overlap(splits: dict[str, list[Path]]) -> str | None:
    """Return a warning of files that lie in more than one split, or ``None``.

    Copies are found, whatever their names, and links. A file is read if one of another split has the same size, and
    read whole if its end is the same, too. Of more than 200,000 files only links are found.
    """
    files = list(_stat(splits))
    if len(files) > _MOST_READ:
        shared = _group([files], lambda file: file.inode)
    else:
        shared = _group(_group(_group([files], lambda file: file.size), _read_end), _read_digest)
    groups = list(shared)
    if not groups:
        return None
    first = groups[0][0]
    second = next(file for file in groups[0] if file.split != first.split)
    return (
        f"{len(groups)} image(s) lie in more than one split, the first as {first.path} ({first.split}) and"
        f" {second.path} ({second.split}). They do not show how a model does on new images: remove them from one of the"
        " splits."
    )


def _stat(splits: dict[str, list[Path]]) -> Iterator[_File]:
    for split, paths in splits.items():
        for path in paths:
            with suppress(OSError):  # the error comes when it is to be decoded
                status = path.stat()
                yield _File(split, path, status.st_size, (status.st_dev, status.st_ino))


def _group(groups: Iterable[list[_File]], key: Callable[[_File], Hashable]) -> Iterator[list[_File]]:
    """Yield those parts of the groups that have the same key and are of several splits."""
    for group in groups:
        parts: dict[Hashable, list[_File]] = defaultdict(list)
        for file in group:
            with suppress(OSError):
                parts[key(file)].append(file)
        yield from (part for part in parts.values() if len({file.split for file in part}) > 1)


def _read_end(file: _File) -> bytes:
    with open(file.path, "rb", buffering=0) as opened:
        opened.seek(max(0, file.size - _END))
        return opened.read()


def _read_digest(file: _File) -> bytes:
    with open(file.path, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").digest()
