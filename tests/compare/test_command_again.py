"""The command once more in the same folder: it goes on where it was, and tells what was changed."""

from pathlib import Path

import pytest

from tests.compare.helpers import ALONE, compare, read_results, report, stamps


@pytest.mark.long
def test_goes_on_where_it_was_and_takes_more(capsys):
    assert compare() == 0
    first, before = read_results("out"), stamps()
    assert len(first) == 12
    # seen again, with nothing to do
    capsys.readouterr()
    assert compare() == 0
    assert "Trying" not in capsys.readouterr().err
    more = ["--compare.confirm=7", "--compare.methods=none,znorm,clip"]
    assert compare(*more) == 0
    err = capsys.readouterr().err
    assert "21 runs (3 x 7 to compare), 12 of them done" in err
    assert "[13/21]" in err
    assert "[12/21]" not in err
    assert stamps().items() >= before.items()
    everything = read_results("out")
    assert len(everything) == 21
    assert first.items() <= everything.items()
    # the metric may change without a run, and fewer methods are a part of them
    assert compare("--compare.monitor=val_loss", "--compare.confirm=7", "--compare.mode=max") == 0
    assert "Trying" not in capsys.readouterr().err
    assert "test_loss" in Path("out/summary.md").read_text()
    assert read_results("out") == everything


@pytest.mark.slow
def test_an_analysis_that_is_changed_is_told(capsys):
    changed = "The analysis was changed after the first runs"
    alone = ["--compare.methods=none", "--compare.margin=0.02"]
    assert compare(*alone, "--compare.confirm=1") == 0
    assert compare(*alone, "--compare.confirm=1") == 0
    assert changed not in capsys.readouterr().out
    assert compare(*alone, "--compare.confirm=2", "--compare.margin=0.5") == 0
    caveat = f"{changed} (`pairs` from 1 to 2; `margin` from 0.02 to 0.5)"
    assert caveat in capsys.readouterr().out
    assert caveat in Path("out/summary.md").read_text()
    # also in a report of the folder, and not where it is as before
    assert report("out") == 0
    assert caveat in capsys.readouterr().out
    assert compare(*alone, "--compare.confirm=1") == 0
    assert changed not in capsys.readouterr().out


@pytest.mark.slow
def test_an_analysis_may_be_changed_before_the_first_run(capsys):
    mistaken = ["--compare.monitor=val_accuracy", "--compare.margin=0.02"]
    assert compare(*ALONE, *mistaken) == 2
    assert compare(*ALONE, "--compare.margin=0.01") == 0
    assert "was changed" not in capsys.readouterr().out
