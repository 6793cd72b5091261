"""Files are written whole or not at all, also on a full disk."""

import json
import math
import os
from pathlib import Path

import pytest

from lightning_znorm.compare.files import read_json, write_atomically, write_json
from lightning_znorm.compare.runs.store import Store
from tests.compare.stored import CONFIGURATION


def test_temporary_files_have_names_of_their_own_and_go(monkeypatch):
    """Processes of two machines can have the same number."""
    names = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda source, target: names.append(source))
        for _ in range(2):
            write_atomically(Path("file.json"), "{}")
    assert len({*names}) == 2
    Path("out").mkdir()
    Path("out/.report.html.0123456789abcdef0123456789abcdef.tmp").touch()
    with Store(Path("out")).open(CONFIGURATION):
        assert not Path("out/.report.html.0123456789abcdef0123456789abcdef.tmp").exists()


def test_a_full_disk_is_named_and_leaves_no_file(monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"`out\.json` cannot be written \(No space left on device\).*same command again"):
        write_json(Path("out.json"), {})
    assert not list(Path().iterdir())


def test_files_are_whole_or_not_there(monkeypatch):
    path = Path("file.json")
    write_json(path, {"value": 1})

    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_json(path, {"value": 2})
    assert read_json(path) == {"value": 1}


def test_what_is_not_a_number_is_null():
    write_json(Path("file.json"), {"a": (math.nan, 1.5, {"b": math.inf})})
    assert json.loads(Path("file.json").read_text(), parse_constant=pytest.fail) == {"a": [None, 1.5, {"b": None}]}
    write_atomically(Path("bytes"), b"\x00\x01")
    assert Path("bytes").read_bytes() == b"\x00\x01"
