"""The folder: nothing is lost, nothing of others is touched."""

import json
import math
import os
from pathlib import Path

import pytest

from lightning_znorm.compare.files import read_json, write_atomically, write_json
from lightning_znorm.compare.question.methods import Method
from lightning_znorm.compare.question.run import Run, Setting
from lightning_znorm.compare.runs.checkpoint import find_checkpoint
from lightning_znorm.compare.runs.result import RunResult
from lightning_znorm.compare.runs.store import Store, find_differences
from lightning_znorm.errors import ComparisonError, FileError
from tests.compare.helpers import result

CONFIGURATION = {
    "model": {"class_path": "a.B", "init_args": {"lr": 0.1, "sizes": [1, 2]}},
    "trainer": {"max_epochs": 2},
}
RUN = Run(Method("none"), Setting(0, {"lr": 0.1}), 0)
CONTENT = result("none", 0, {"lr": 0.1})
RESULT = RunResult.from_json(RUN, CONTENT)


def test_a_folder_is_taken_and_found_again():
    with Store(Path("new/folder")).open(CONFIGURATION) as store:
        store.write_result(RESULT)
    with Store(Path("new/folder")).open(CONFIGURATION) as store:
        other = Run(Method("none"), Setting(0, {"lr": 0.1}), 1)
        assert [store.read_result(run) for run in (RUN, other)] == [RESULT, None]
        store.clear(RUN)
        assert store.read_result(RUN) is None


def test_a_mistake_that_the_trial_found_can_be_corrected_in_place():
    with Store(Path("out")).open(CONFIGURATION) as store:
        write_json(store.trial_file, {})
        store.get_run_folder(RUN).mkdir(parents=True)
        (store.get_run_folder(RUN) / "log.txt").write_text("interrupted")
    with Store(Path("out")).open(CONFIGURATION) as store:
        assert store.trial_file.exists()
    with Store(Path("out")).open({"trainer": {"max_epochs": 3}}) as store:
        assert not store.trial_file.exists()
        assert not store.get_run_folder(RUN).exists()
        store.write_result(RESULT)
    with pytest.raises(ValueError, match="max_epochs is 2, was 3"):
        Store(Path("out")).check(CONFIGURATION)


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


def test_what_a_killed_process_has_left_is_no_obstacle():
    Path("out").mkdir()
    Path("out/.lock").touch()
    Path("out/.comparison.json.0123456789abcdef0123456789abcdef.tmp").write_text("{")
    with Store(Path("out")).open(CONFIGURATION) as store:
        folder = store.get_run_folder(RUN)
        folder.mkdir(parents=True)
        (folder / ".result.json.123.tmp").write_text('{"schema": 2')
        assert store.read_result(RUN) is None
        (folder / "result.json").write_text('{"schema": 2')
        assert store.read_result(RUN) is None
        write_json(folder / "result.json", {**CONTENT, "schema": 1})
        assert store.read_result(RUN) is None


@pytest.mark.parametrize(
    "content",
    [
        '{"schema": 2}',
        json.dumps({**CONTENT, "test": {"test_acc": "high"}}),
        json.dumps({**CONTENT, "curve": None}),
        json.dumps({**CONTENT, "curve": [{"epoch": 1, "step": 1}]}),
        json.dumps({**CONTENT, "curve": [{"epoch": 1, "step": 1, "metrics": {"val_acc": "high"}}]}),
        json.dumps({**CONTENT, "curve": [{"epoch": 1, "step": 1, "metrics": None}]}),
        json.dumps({**CONTENT, "seconds": {"total": 1.0}}),
        json.dumps({**CONTENT, "seconds": 2.0}),
        json.dumps({**CONTENT, "epoch_hashes": ["a"]}),
        json.dumps({**CONTENT, "train_loss": "ab"}),
        json.dumps({**CONTENT, "steps": "7"}),
        json.dumps({**CONTENT, "weights_hash": 7}),
        json.dumps({**CONTENT, "status": "odd"}),
        "[]",
    ],
)
def test_a_damaged_result_is_none(content):
    with Store(Path("out")).open(CONFIGURATION) as store:
        store.write_result(RESULT)
        (store.get_run_folder(RUN) / "result.json").write_text(content)
        assert store.read_result(RUN) is None


def test_a_run_that_can_be_resumed_is_kept_without_what_was_not_finished():
    with Store(Path("out")).open(CONFIGURATION) as store:
        store.write_result(RESULT)
        folder = store.get_run_folder(RUN)
        checkpoint, log = find_checkpoint(folder), folder / "log.txt"
        half = folder / f".{checkpoint.name}.0123456789abcdef0123456789abcdef.tmp"
        for path in (checkpoint, log, half):
            path.touch()
        store.clear(RUN)
        assert {*folder.iterdir()} == {checkpoint, log}
        checkpoint.rename(folder / "resume-ofothers.ckpt")
        store.clear(RUN)
        assert not folder.exists()


def test_something_else_in_the_place_of_a_run():
    with Store(Path("out")).open(CONFIGURATION) as store:
        (store.get_run_folder(RUN) / "result.json").mkdir(parents=True)
        assert store.read_result(RUN) is None
        store.clear(RUN)
        store.get_run_folder(RUN).write_text("a file")
        assert store.read_result(RUN) is None
        store.clear(RUN)
        store.write_result(RESULT)
        assert store.read_result(RUN) == RESULT


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


QUESTION = {"pairs": 6, "width": None, "margin": 0.1, "monitor": "val_acc"}


def test_the_question_is_noted_and_the_plan_of_the_first_runs_is_kept():
    with Store(Path("out")).open(CONFIGURATION) as store:
        assert store.read_question() == store.read_planned() == store.read_about() == {}
        store.write_question({**QUESTION, "margin": 0.5}, {"model": "a.B"})
    # without a result, everything may be changed
    with Store(Path("out")).open(CONFIGURATION) as store:
        store.write_question(QUESTION, {"model": "a.B"})
        store.write_result(RESULT)
    with Store(Path("out")).open(CONFIGURATION) as store:
        store.write_question({**QUESTION, "pairs": 9}, {"model": "a.C"})
    again = Store(Path("out"))
    assert again.read_question() == {**QUESTION, "pairs": 9}
    assert again.read_planned() == {"pairs": 6, "width": None, "margin": 0.1}
    assert again.read_about() == {"model": "a.C"}


def test_the_number_of_threads_is_that_of_the_first_runs():
    with Store(Path("out")).open(CONFIGURATION) as store:
        assert store.fix_threads(3) == 3
        assert store.fix_threads(4) == 3
    with Store(Path("out")).open(CONFIGURATION) as store:
        assert store.fix_threads(2) == 2  # there is no run yet
        store.write_result(RESULT)
    with Store(Path("out")).open(CONFIGURATION) as store:
        assert store.fix_threads(5) == 2


def test_results_by_name_without_those_that_are_damaged():
    with Store(Path("out")).open(CONFIGURATION) as store:
        store.write_result(RESULT)
        for seed, text in enumerate(['{"name": ', "[]", "{}"], start=1):
            folder = store.get_run_folder(Run(Method("none"), Setting(0, {"lr": 0.1}), seed))
            folder.mkdir()
            (folder / "result.json").write_text(text)
        (named,) = store.read_named_results().items()
    assert named == ("none, lr=0.1, seed 0", RESULT.to_json())
    assert str(RUN) == named[0]


def test_a_wrong_question_leaves_nothing_behind():
    def ask(folder):
        with Store(Path(folder)).open(CONFIGURATION) as store:
            store.get_run_folder(RUN).mkdir(parents=True, exist_ok=True)
            raise ComparisonError("a wrong monitor")

    Path("empty").mkdir()
    for folder in ("new", "empty"):
        with pytest.raises(ValueError, match="a wrong monitor"):
            ask(folder)
    assert not Path("new").exists()
    assert not list(Path("empty").iterdir())
    with Store(Path("full")).open(CONFIGURATION) as store:
        store.write_result(RESULT)
    with pytest.raises(ValueError, match="a wrong monitor"):
        ask("full")
    assert Store(Path("full")).read_result(RUN) == RESULT


def test_a_full_disk_costs_no_checkpoint():
    def fail():
        with Store(Path("out")).open(CONFIGURATION) as store:
            folder = store.get_run_folder(RUN)
            folder.mkdir(parents=True, exist_ok=True)
            find_checkpoint(folder).touch()
            raise FileError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        fail()
    assert find_checkpoint(Store(Path("out")).get_run_folder(RUN)).exists()
    with pytest.raises(ValueError, match="max_epochs is 3, was 2"):
        Store(Path("out")).check({**CONFIGURATION, "trainer": {"max_epochs": 3}})


def test_a_relative_folder_stays_where_it_was():
    store = Store(Path("out"))
    Path("elsewhere").mkdir()
    os.chdir("elsewhere")
    with store.open(CONFIGURATION):
        store.write_result(RESULT)
    os.chdir("..")
    assert Path("out/comparison.json").exists()


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


def test_differences_of_what_is_missing():
    assert find_differences({"a": 1}, {"b": 2}) == [("a", 1, None), ("b", None, 2)]
