"""A folder of another configuration or of something else: it is refused, and nothing of others is touched."""

import json
import math
from pathlib import Path

import pytest

from lightning_znorm.compare.runs.manifest import find_differences
from lightning_znorm.compare.runs.store import Store
from tests.compare.stored import CONFIGURATION, RESULT


def test_of_another_configuration():
    with Store(Path("out")).open(CONFIGURATION) as store:
        store.write_result(RESULT)
    other = json.loads(json.dumps(CONFIGURATION))
    other["model"]["init_args"]["lr"] = 0.2
    with pytest.raises(
        ValueError, match=r"of another configuration \(model\.init_args\.lr is 0\.2, was 0\.1\)"
    ) as error:
        Store(Path("out")).check(other)
    assert "--compare.out" in str(error.value)


def test_tuples_and_lists_are_the_same_configuration():
    with Store(Path("out")).open({"a": (1, 2), "b": {"c": None}}):
        pass
    Store(Path("out")).check({"a": [1, 2], "b": {"c": None}})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("notes.txt", "mine", r"is not the folder of a comparison \(it contains notes\.txt\)"),
        (
            "comparison.json",
            '{"schema": 99}',
            r"comparison\.json` was written by another version \(schema 99\); this version reads schema 2",
        ),
        ("comparison.json", '{"schema": 1, "configuration": {}}', r"by another version \(schema 1\).* reads schema 2"),
        ("comparison.json", "not json", r"comparison\.json` is damaged"),
        ("comparison.json", '{"schema": 2}', r"comparison\.json` is damaged"),
    ],
)
def test_of_something_else(name, content, message):
    Path("out").mkdir()
    Path("out", name).write_text(content)
    with pytest.raises(ValueError, match=message), Store(Path("out")).open(CONFIGURATION):
        pass
    assert Path("out", name).read_text() == content


def test_a_file_in_its_place():
    Path("out").write_text("")
    with pytest.raises(ValueError, match="cannot be written"), Store(Path("out")).open(CONFIGURATION):
        pass
    with pytest.raises(ValueError, match="is not a folder"):
        Store(Path("out")).check(CONFIGURATION)
    with pytest.raises(ValueError, match="cannot be written"), Store(Path("out/below")).open(CONFIGURATION):
        pass


def test_where_nobody_may_write():
    with pytest.raises(ValueError, match="cannot be written"), Store(Path("/proc/comparison")).open(CONFIGURATION):
        pass


def test_what_is_not_finite_is_recognized():
    configuration = {"model": {"limit": math.inf, "scale": math.nan, "sizes": [-math.inf]}}
    with Store(Path("out")).open(configuration) as store:
        store.write_result(RESULT)
    Store(Path("out")).check(configuration)
    json.loads(Path("out/comparison.json").read_text(), parse_constant=pytest.fail)
    with pytest.raises(ValueError, match=r"model\.limit is None, was '\.inf'"):
        Store(Path("out")).check({"model": {**configuration["model"], "limit": None}})


def test_digests_are_named_only_if_nothing_else_differs():
    def configuration(size, digest):
        return {"data": {"attributes": {"size": size}, "digest": digest}}

    with Store(Path("out")).open(configuration(1, "a")) as store:
        store.write_result(RESULT)
    with pytest.raises(ValueError, match=r"configuration \(data\.attributes\.size is 2, was 1\)"):
        Store(Path("out")).check(configuration(2, "b"))
    with pytest.raises(ValueError, match=r"configuration \(data\.digest is 'b', was 'a'\)"):
        Store(Path("out")).check(configuration(1, "b"))


def test_a_number_and_a_share_are_not_the_same():
    with Store(Path("out")).open({"trainer": {"limit_train_batches": 1}}) as store:
        store.write_result(RESULT)
    with pytest.raises(ValueError, match=r"trainer\.limit_train_batches is 1\.0, was 1"):
        Store(Path("out")).check({"trainer": {"limit_train_batches": 1.0}})


def test_files_of_others_stay():
    Path("out").mkdir()
    Path("out/.notes.tmp").write_text("mine")
    with (
        pytest.raises(ValueError, match=r"is not the folder of a comparison \(it contains \.notes\.tmp\)"),
        Store(Path("out")).open({}),
    ):
        pass
    assert [path.name for path in Path("out").iterdir()] == [".notes.tmp"]


def test_results_that_no_other_process_recognizes_are_not_used_again():
    with Store(Path("out")).open(CONFIGURATION) as store:
        assert store.mark_unstable(["datamodule"])
        assert not store.mark_unstable(["datamodule"])
        store.write_result(RESULT)
    with pytest.raises(ValueError, match=r"cannot be used again.*look different in every process \(datamodule\)"):
        Store(Path("out")).check(CONFIGURATION)


def test_differences_of_what_is_missing():
    assert find_differences({"a": 1}, {"b": 2}) == [("a", 1, None), ("b", None, 2)]
