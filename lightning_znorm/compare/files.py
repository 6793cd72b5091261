"""Files that are written completely or not at all, and JSON without inf and NaN."""

import json
import math
import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lightning_znorm.errors import FileError

_LONGEST_END = 1 << 16  # bytes of a log


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically; inf and NaN become ``null``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(as_json(value), indent=1) + "\n")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file completely or not at all; raise ``OSError`` if that fails."""
    try:
        with replace_file(path) as temporary, temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise explain(error, path) from error


def explain(error: OSError, path: Path) -> FileError:
    """Return the error for a file that cannot be written during a comparison."""
    return FileError(
        error.errno,
        f"`{path}` cannot be written ({error.strerror or error}). Finished runs are kept: fix this, and run the same"
        " command again to resume",
    )


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file that replaces another one if the block ends without an error."""
    # unique among all processes, also of other machines
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def as_json(value: Any) -> Any:
    """Return a value after a round trip through JSON, with ``None`` for inf and NaN and ``repr`` of other objects."""
    return json.loads(json.dumps(replace_nonfinite(value, lambda number: None), default=repr))


def read_json(path: Path) -> Any:
    """Read a JSON file, ``None`` if it is damaged."""
    try:
        return json.loads(path.read_text())
    except ValueError:
        return None


def is_temporary(path: Path) -> bool:
    """Return whether a file was left by a process that was killed in :func:`replace_file`."""
    return re.fullmatch(r"\.[\w.-]+\.[0-9a-f]{32}\.tmp", path.name) is not None and path.is_file()


def replace_nonfinite(value: Any, replace: Callable[[float], Any]) -> Any:
    """Replace inf and NaN in nested mappings and lists."""
    if isinstance(value, Mapping):
        return {name: replace_nonfinite(item, replace) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [replace_nonfinite(item, replace) for item in value]
    return replace(value) if isinstance(value, float) and not math.isfinite(value) else value


def find_log(folder: Path, rank: int = 0) -> Path:
    """Return the path of the log of a run's process."""
    return folder / (f"log-rank-{rank}.txt" if rank else "log.txt")


def read_log(folder: Path, lines: int = 15, rank: int = 0) -> str:
    """Return the end of the log of a run's process, at most 64 kB of it."""
    try:
        with find_log(folder, rank).open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _LONGEST_END))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
