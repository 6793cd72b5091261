"""The folder: nothing is lost, nothing of others is touched."""

import json
import math
import os
from pathlib import Path

import pytest

from lightning_znorm.compare.methods import Method
from lightning_znorm.compare.plan import Run
from lightning_znorm.compare.store import Store, differences, read_json, write_atomically, write_json

CONFIGURATION = {
    "model": {"class_path": "a.B", "init_args": {"lr": 0.1, "sizes": [1, 2]}},
    "trainer": {"max_epochs": 2},
}
RUN = Run(Method("none"), {"lr": 0.1}, 0)


def test_a_folder_is_taken_and_found_again():
    with Store(Path("new/folder")).opened(CONFIGURATION) as store:
        store.keep(RUN, {"schema": 1, "test": {"acc": 0.5}})
    with Store(Path("new/folder")).opened(CONFIGURATION) as store:
        found = store.results([RUN, Run(Method("none"), {"lr": 0.1}, 1)])
        assert found == [{"schema": 1, "test": {"acc": 0.5}, "setting": {"lr": 0.1}}]
        store.clear(RUN)
        assert store.result_of(RUN) is None


def test_a_mistake_that_the_trial_found_can_be_corrected_in_place():
    with Store(Path("out")).opened(CONFIGURATION) as store:
        write_json(store.trial, {})
        store.folder_of(RUN).mkdir(parents=True)
        (store.folder_of(RUN) / "log.txt").write_text("interrupted")
    with Store(Path("out")).opened(CONFIGURATION) as store:
        assert store.trial.exists()
    with Store(Path("out")).opened({"trainer": {"max_epochs": 3}}) as store:
        assert not store.trial.exists()
        assert not store.folder_of(RUN).exists()
        store.keep(RUN, {"schema": 1})
    with pytest.raises(ValueError, match="max_epochs is 2, was 3"):
        Store(Path("out")).check(CONFIGURATION)


def test_of_another_configuration():
    with Store(Path("out")).opened(CONFIGURATION) as store:
        store.keep(RUN, {"schema": 1})
    other = json.loads(json.dumps(CONFIGURATION))
    other["model"]["init_args"]["lr"] = 0.2
    with pytest.raises(
        ValueError, match=r"of another configuration \(model\.init_args\.lr is 0\.2, was 0\.1\)"
    ) as error:
        Store(Path("out")).check(other)
    assert "--compare.out" in str(error.value)


def test_tuples_and_lists_are_the_same_configuration():
    with Store(Path("out")).opened({"a": (1, 2), "b": {"c": None}}):
        pass
    Store(Path("out")).check({"a": [1, 2], "b": {"c": None}})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("notes.txt", "mine", r"has other things in it \(notes\.txt\)"),
        ("comparison.json", '{"schema": 99}', r"is not of the form that this version reads \(schema 1\)"),
        ("comparison.json", "not json", "is not of the form"),
    ],
)
def test_of_something_else(name, content, message):
    Path("out").mkdir()
    Path("out", name).write_text(content)
    with pytest.raises(ValueError, match=message), Store(Path("out")).opened(CONFIGURATION):
        pass
    assert Path("out", name).read_text() == content


def test_a_file_in_its_place():
    Path("out").write_text("")
    with pytest.raises(ValueError, match="cannot be written"), Store(Path("out")).opened(CONFIGURATION):
        pass
    with pytest.raises(ValueError, match="is not a folder"):
        Store(Path("out")).check(CONFIGURATION)
    with pytest.raises(ValueError, match="cannot be written"), Store(Path("out/below")).opened(CONFIGURATION):
        pass


def test_where_nobody_may_write():
    with pytest.raises(ValueError, match="cannot be written"), Store(Path("/proc/comparison")).opened(CONFIGURATION):
        pass


def test_two_at_a_time():
    refused = pytest.raises(ValueError, match="Another comparison is at work")
    with Store(Path("out")).opened(CONFIGURATION), refused, Store(Path("out")).opened(CONFIGURATION):
        pass
    with Store(Path("out")).opened(CONFIGURATION):
        pass


def test_what_a_killed_process_has_left_is_no_obstacle():
    Path("out").mkdir()
    Path("out/.lock").touch()
    Path("out/.comparison.json.123.tmp").write_text("{")
    with Store(Path("out")).opened(CONFIGURATION) as store:
        folder = store.folder_of(RUN)
        folder.mkdir(parents=True)
        (folder / ".result.json.123.tmp").write_text('{"schema": 1')
        assert store.result_of(RUN) is None
        (folder / "result.json").write_text('{"schema": 1')
        assert store.result_of(RUN) is None
        (folder / "result.json").write_text('{"schema": 0}')
        assert store.result_of(RUN) is None


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
    write_json(Path("file.json"), {"a": [math.nan, 1.5, {"b": math.inf}]})
    assert json.loads(Path("file.json").read_text(), parse_constant=pytest.fail) == {"a": [None, 1.5, {"b": None}]}
    write_atomically(Path("bytes"), b"\x00\x01")
    assert Path("bytes").read_bytes() == b"\x00\x01"


def test_differences_of_what_is_missing():
    assert differences({"a": 1}, {"b": 2}) == [("a", 1, None), ("b", None, 2)]
