"""Runs that crash, diverge or have no metric: none stops the others, and each is told."""

from pathlib import Path

import pandas as pd
import pytest

from tests.compare.helpers import ODD, TWO, compare, read_results, stamps
from tests.compare.tiny import TinyData


@pytest.mark.long
def test_crashes_and_divergences_do_not_stop_the_others(capsys):
    """In the selection, a setting that crashed is out of the running, and one that diverged has its metric."""
    flags = ["--compare.sweep=model.init_args.fail=raise,kill,diverge", "--compare.methods=none", TWO]
    assert compare(*flags) == 0
    runs = pd.read_csv("out/runs.csv")
    unlucky = runs[runs["seed"] == 1].set_index("model.init_args.fail")
    assert unlucky["status"].to_dict() == {"raise": "crashed", "kill": "crashed", "diverge": "diverged"}
    assert unlucky.loc["raise", "error"] == "RuntimeError: out of luck"
    assert "signal 9" in unlucky.loc["kill", "error"]
    assert (runs[runs["seed"] != 1]["status"] == "finished").all()
    assert runs.loc[runs["stage"] == "confirmation", "model.init_args.fail"].tolist() == ["diverge"] * 2
    assert "3 of 9 runs of `none` in the selection" in capsys.readouterr().out
    results = read_results("out")
    assert len(results) == 11
    assert compare(*flags) == 0
    assert read_results("out") == results
    capsys.readouterr()
    assert compare(*flags, "--compare.retry") == 0
    assert capsys.readouterr().err.count("crashed: ") == 2


@pytest.mark.slow
def test_a_diverged_run_counts_with_the_metric_of_its_last_weights(capsys):
    """Here all of them are NaN: the first class is predicted for each sample."""
    flags = ["--model.init_args.fail=diverge", "--compare.methods=none", "--compare.confirm=[0,1]"]
    assert compare(*flags) == 0
    runs = pd.read_csv("out/runs.csv").set_index("seed")
    assert runs["status"].to_dict() == {0: "finished", 1: "diverged"}
    assert runs["ended"].to_dict() == {0: "max_epochs", 1: "divergence"}
    assert runs["steps"].to_dict() == {0: 10, 1: 5}
    labels = {split: getattr(TinyData(), f"{split}_dataloader")().dataset.tensors[1] for split in ("val", "test")}
    zeros = {split: (values == 0).float().mean().item() for split, values in labels.items()}
    assert runs.loc[1, "validation"] == pytest.approx(zeros["val"])
    assert runs.loc[1, "test"] == pytest.approx(zeros["test"])
    assert pd.isna(runs.loc[1, "test_loss"])
    summary = pd.read_csv("out/summary.csv")
    assert summary.loc[0, "test"] == pytest.approx(runs["test"].mean())
    assert summary.loc[0, "diverged"] == 1
    assert "1 of 2 runs of `none` in the confirmation diverged (see `runs.csv`)" in capsys.readouterr().out
    # it would be the same another time, so that it is not repeated
    before = stamps()
    assert compare(*flags, "--compare.retry") == 0
    assert stamps() == before


@pytest.mark.long
def test_a_crash_leaves_the_answer_open_until_it_is_mended(capsys):
    Path("mine_that_is_mended.py").write_text(
        "import os\nfrom pathlib import Path\nimport torch\nfrom tests.compare.tiny import TinyModel\n"
        "class Model(TinyModel):\n"
        "    def on_fit_start(self):\n"
        "        if torch.initial_seed() == 4 and Path('broken').exists():\n"
        "            raise RuntimeError('broken')\n"
    )
    Path("broken").touch()
    flags = ["--model=mine_that_is_mended.Model", "--compare.methods=none,znorm", "--compare.margin=0.5"]
    assert compare(*flags) == 0
    out = capsys.readouterr().out
    assert (
        "`znorm` against `none` is undecided, as 1 run of `none` has no `test_acc` (crashed) and 1 run of `znorm`"
        in out
    )
    summary = pd.read_csv("out/summary.csv").set_index("method")
    assert summary["crashed"].to_dict() == {"none": 1, "znorm": 1}
    assert summary.loc["znorm", "answer"] == "undecided"
    before = stamps()
    Path("broken").unlink()
    assert compare(*flags) == 0
    assert stamps() == before
    assert "crashed" in capsys.readouterr().out
    assert compare(*flags, "--compare.retry") == 0
    after = stamps()
    assert sum(after[path] != before[path] for path in before) == 2
    assert "crashed" not in capsys.readouterr().out
    summary = pd.read_csv("out/summary.csv").set_index("method")
    assert summary["crashed"].to_dict() == {"none": 0, "znorm": 0}
    assert summary.loc["znorm", "answer"] in ("better", "worse", "equivalent")
    assert summary.loc["znorm", "pairs"] == 6


@pytest.mark.slow
def test_a_method_without_any_metric_is_named_with_its_settings(capsys):
    """Its losses are NaN at whatever setting, and those of the other are not."""
    flags = ["--compare.sweep=model.init_args.lr=0.3,0.03", f"--compare.methods=none,{ODD}.Spoil"]
    assert compare(*flags, "--compare.monitor=val_loss", "--compare.confirm=6") == 0
    printed = capsys.readouterr()
    expected = f"none of 2 settings of `{ODD}.Spoil` (lr=0.3 to lr=0.03) has a finite `val_loss`"
    assert expected in printed.out
    runs = pd.read_csv("out/runs.csv")
    assert (runs["stage"] == "selection").all()  # there is nothing to confirm
    assert runs.groupby("method")["validation"].count().to_dict() == {f"{ODD}.Spoil": 0, "none": 6}
    before = stamps()
    assert compare(*flags, "--compare.monitor=val_loss", "--compare.confirm=6") == 0
    assert stamps() == before
