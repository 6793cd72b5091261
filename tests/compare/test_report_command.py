"""`lightning-znorm report`, from folders alone."""

import json
import shutil
import signal
from pathlib import Path

import pandas as pd
import pytest

from tests import warm
from tests.compare.helpers import ALONE, FLAGS, ROOT, TWO, compare, read_results, refusal, report


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole comparison of two methods."""
    folder = tmp_path_factory.mktemp("finished") / "out"
    done = warm.run(
        *("-m", "lightning_znorm", "compare", *FLAGS, f"--compare.out={folder}", "--trainer.max_epochs=1"),
        env={"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return folder


FILES = ("summary.md", "summary.csv", "runs.csv", "report.html")


@pytest.mark.slow
def test_the_report_of_a_folder_is_that_of_the_command(capsys, finished):
    shutil.copytree(finished, "moved")
    before = {name: Path("moved", name).read_text() for name in FILES}
    for name in FILES:
        Path("moved", name).unlink()
    assert report("moved") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("# Does znorm beat none?")
    assert [line for line in printed.splitlines() if line.endswith(FILES)] == [
        str(Path("moved", name).absolute()) for name in ("report.html", "summary.md", "summary.csv", "runs.csv")
    ]
    after = {name: Path("moved", name).read_text() for name in FILES}
    for name in FILES:  # the commands in them name one folder or the other
        texts = [
            text[name].replace(str(finished), "…").replace(str(Path("moved").absolute()), "…")
            for text in (before, after)
        ]
        assert texts[0] == texts[1]


@pytest.mark.slow
def test_an_overview_of_several(capsys, finished):
    assert report(str(finished), str(finished)) == 0
    head, _, *rows = capsys.readouterr().out.splitlines()
    columns = ["folder", "metric", "method", "baseline", "answer", "difference", "95% interval", "p (Holm)", "pairs"]
    assert [cell.strip() for cell in head.strip("|").split("|")] == columns
    assert len(rows) == 2
    summary = pd.read_csv(finished / "summary.csv").set_index("method")
    cells = dict(zip(columns, (cell.strip() for cell in rows[0].strip("|").split("|")), strict=True))
    assert cells["folder"] == str(finished)
    assert (cells["method"], cells["baseline"], cells["pairs"]) == ("znorm", "none", "6")
    assert cells["answer"] == summary.loc["znorm", "answer"]
    assert float(cells["difference"]) == pytest.approx(100 * summary.loc["znorm", "difference"], abs=0.05)


@pytest.mark.slow
def test_an_unfinished_comparison_while_it_is_at_work(capsys):
    command = ["-m", "lightning_znorm", "compare", *FLAGS, "--compare.methods=none", "--compare.confirm=[0,2,1]"]
    process = warm.start(*command, "--model.init_args.fail=hold", env={"PYTHONPATH": str(ROOT)})
    for line in process.stderr:
        if "[2/3]" in line:
            break
    assert report("out") == 0
    printed = capsys.readouterr().out
    assert "Unfinished: 2 of 3 runs are done." in printed
    assert len(pd.read_csv("out/runs.csv")) == 2
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 130
    assert report("out") == 0
    assert "Unfinished: 2 of 3 runs are done." in capsys.readouterr().out


@pytest.mark.slow
def test_a_result_that_comes_later_or_is_lost(capsys, finished):
    shutil.copytree(finished, "out")
    lost = next(path for path in Path("out").glob("runs/znorm*/result.json"))
    content = lost.read_text()
    lost.unlink()
    assert report("out") == 0
    assert "`znorm` against `none`: 5 of 6 pairs are done" in capsys.readouterr().out
    lost.write_text(content[:-20])  # half of a file is none
    assert report("out") == 0
    assert "Unfinished: 11 of 12 runs are done." in capsys.readouterr().out
    lost.write_text(content)
    assert report("out") == 0
    assert "Unfinished" not in capsys.readouterr().out


@pytest.mark.slow
def test_of_the_question_that_was_asked_last(capsys):
    """And of its methods, where the folder has others."""
    assert compare("--compare.methods=none", TWO) == 0
    assert compare(*ALONE, "--compare.methods=znorm") == 0
    capsys.readouterr()
    assert report("out") == 0
    assert capsys.readouterr().out.startswith("# How good is znorm in test_acc?")
    assert pd.read_csv("out/runs.csv")["method"].tolist() == ["znorm"]
    assert len(read_results("out")) == 3


def test_what_is_no_comparison(capsys):
    Path("empty").mkdir()
    for folder in ("nowhere", "empty"):
        message = refusal(capsys, folder, command=report)
        assert message == (
            f"lightning-znorm: error: `{Path(folder).absolute()}` is not the folder of a comparison: it has no"
            " `comparison.json`."
        )
    assert not list(Path("empty").iterdir())


def test_a_folder_without_results(capsys):
    Path("out").mkdir()
    Path("out/comparison.json").write_text(json.dumps({"schema": 2, "configuration": {}}))
    assert "has no finished run yet. Wait for the first one." in refusal(capsys, "out", command=report)
    assert [path.name for path in Path("out").iterdir()] == ["comparison.json"]


def test_a_folder_of_an_earlier_version_is_refused_by_both_commands(capsys):
    Path("out/runs/none-seed0-01234567").mkdir(parents=True)
    files = {
        "comparison.json": {"schema": 1, "configuration": {}, "unstable": []},
        "runs/none-seed0-01234567/result.json": {"schema": 1, "status": "finished"},
    }
    for name, content in files.items():
        Path("out", name).write_text(json.dumps(content))
    for command, args in ((compare, []), (report, ["out"])):
        message = refusal(capsys, *args, command=command)
        assert "comparison.json` was written by another version (schema 1); this version reads schema 2." in message
    assert {name: json.loads(Path("out", name).read_text()) for name in files} == files
    assert len([path for path in Path("out").rglob("*") if path.is_file()]) == 2


def test_no_folder(capsys):
    assert "the following arguments are required: DIR" in refusal(capsys, command=report)
