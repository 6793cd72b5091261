"""The folder of a comparison: nothing that it has is lost, and what is damaged is left out."""

import json
import os
from pathlib import Path

import pytest

from lightning_znorm.compare.files import write_json
from lightning_znorm.compare.question.methods import Method
from lightning_znorm.compare.question.run import Run, Setting
from lightning_znorm.compare.runs.checkpoint import find_checkpoint
from lightning_znorm.compare.runs.store import Store
from lightning_znorm.errors import ComparisonError, FileError
from tests.compare.stored import CONFIGURATION, CONTENT, RESULT, RUN


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
