"""The file ``comparison.json`` in the folder of a comparison."""

import json
from pathlib import Path
from typing import Any

from lightning_znorm.compare.files import read_json, replace_nonfinite
from lightning_znorm.compare.runs.result import SCHEMA
from lightning_znorm.errors import ArgumentValueError

MANIFEST = "comparison.json"


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return its content, empty if there is none or it is damaged."""
    path = folder / MANIFEST
    manifest = read_json(path) if path.is_file() else None
    return manifest if isinstance(manifest, dict) else {}


def require_manifest(folder: Path) -> dict[str, Any]:
    """Return its content; raise ``ValueError`` if there is none, or this version cannot read it."""
    path = folder / MANIFEST
    if not path.is_file():
        raise ArgumentValueError(f"`{folder}` is not the folder of a comparison: it has no `{MANIFEST}`.")
    manifest = read_manifest(folder)
    schema = manifest.get("schema")
    if schema != SCHEMA or "configuration" not in manifest:
        reason = "is damaged" if schema in (None, SCHEMA) else f"was written by another version (schema {schema})"
        raise ArgumentValueError(
            f"Argument `out`: `{path}` {reason}; this version reads schema {SCHEMA}. Choose another folder with"
            " `--compare.out`."
        )
    return manifest


def find_differences(old: Any, new: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    """List the differences of two nested mappings: dotted key, old value, new value.

    Example::

        >>> find_differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 3, "c": 2}})
        [('a.b', 1, 3)]

    """
    if isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys([*old, *new])
        return [
            difference
            for name in keys
            for difference in find_differences(old.get(name), new.get(name), f"{key}.{name}".lstrip("."))
        ]
    is_same = json.dumps(old, sort_keys=True) == json.dumps(new, sort_keys=True)  # 1 and 1.0 batches differ
    return [] if is_same else [(key, old, new)]


def encode_nonfinite(configuration: Any) -> Any:
    """Replace inf and NaN by their text in YAML, which survives JSON."""
    return replace_nonfinite(configuration, lambda number: f".{number}")
