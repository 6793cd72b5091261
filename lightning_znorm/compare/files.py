"""Files that are whole or not there, and JSON without what JSON does not know."""

import json
import math
import os
import re
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning_znorm.errors import FileError

_LONGEST_END = 1 << 16  # bytes of a log


def write_json(path: Path, value: Any) -> None:
    """Write a file that is either whole or not there; what is not a finite number becomes ``null``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(as_json(value), indent=1) + "\n")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write to a temporary file beside it, and move it into place.

    Raises:
        OSError: Naming the file, if it cannot be written.

    """
    # no other process has this name, not even one of another machine in the same folder
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise FileError(
            error.errno,
            f"`{path}` cannot be written ({error.strerror or error}). Finished runs are kept: when this is mended, run"
            " the same command again",
        ) from error


def as_json(value: Any) -> Any:
    """Return a value as JSON gives it back: ``null`` for what is not a finite number, ``repr`` of other objects."""
    return json.loads(json.dumps(replace_nonfinite(value, lambda number: None), default=repr))


def read_json(path: Path) -> Any:
    """Read a file, ``None`` if it is not JSON."""
    try:
        return json.loads(path.read_text())
    except ValueError:
        return None


def is_temporary(path: Path) -> bool:
    """Say whether a file was being written by :func:`write_atomically` when its process was killed."""
    return re.fullmatch(r"\.[\w.]+\.[0-9a-f]{32}\.tmp", path.name) is not None and path.is_file()


def replace_nonfinite(value: Any, replace: Callable[[float], Any]) -> Any:
    """Replace what is not a finite number in nested mappings and lists."""
    if isinstance(value, Mapping):
        return {name: replace_nonfinite(item, replace) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [replace_nonfinite(item, replace) for item in value]
    return replace(value) if isinstance(value, float) and not math.isfinite(value) else value


def read_log(folder: Path, lines: int = 15) -> str:
    """Return the end of a run's log, at most 64 kB of it."""
    try:
        with (folder / "log.txt").open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _LONGEST_END))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
