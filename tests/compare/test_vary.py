"""A key that is set to the seed of each run, such as that of a split."""

import json
import shlex
from pathlib import Path

import pandas as pd
import pytest

from lightning_znorm.__main__ import main
from lightning_znorm.compare import compare as compare_in_python
from tests.compare.helpers import ALONE, ODD, TWO, compare, read_results, report
from tests.compare.odd import Split
from tests.compare.tiny import TinyModel

SPLIT = [f"--data={ODD}.Split", "--trainer.max_epochs=1"]
VARY = "--compare.vary=data.init_args.seed"


@pytest.mark.slow
def test_each_seed_has_a_split_that_methods_share(capsys):
    assert compare(*SPLIT, VARY) == 0
    runs = pd.read_csv("out/runs.csv")
    hashes = runs.groupby("seed")["batches_hash"]
    assert (hashes.nunique() == 1).all()
    assert runs["batches_hash"].nunique() == 6
    assert "The batches differ" not in capsys.readouterr().out
    summary = Path("out/summary.md").read_text()
    assert "`data.init_args.seed` was set to the seed" in summary
    assert {result["varied"] for result in read_results("out").values()} == {"data.init_args.seed"}
    # the command that repeats a run sets it, too
    commands = [line for line in summary.splitlines() if line.startswith("lightning-znorm compare --config=")]
    assert all(VARY in command for command in commands)
    main(shlex.split(commands[0])[1:])
    (folder,) = Path("repeat").iterdir()
    ((name, repeated),) = read_results(folder).items()
    assert repeated["batches_hash"] == read_results("out")[name]["batches_hash"]
    assert repeated["test"] == read_results("out")[name]["test"]


@pytest.mark.slow
def test_without_it_all_seeds_have_the_same_split():
    assert compare(*SPLIT, *ALONE, TWO) == 0
    assert pd.read_csv("out/runs.csv")["batches_hash"].nunique() == 1


@pytest.mark.slow
def test_runs_with_and_without_it_are_different_ones(capsys):
    """Also for a report that is made of a folder with both."""
    assert compare(*SPLIT, *ALONE) == 0
    without = pd.read_csv("out/runs.csv")
    assert compare(*SPLIT, *ALONE, VARY) == 0
    varied = pd.read_csv("out/runs.csv")
    assert len(read_results("out")) == 2
    assert without["batches_hash"].tolist() != varied["batches_hash"].tolist()
    for flags, expected in (([VARY], varied), ([], without)):
        assert compare(*SPLIT, *ALONE, *flags) == 0
        assert report("out") == 0
        assert pd.read_csv("out/runs.csv")["batches_hash"].tolist() == expected["batches_hash"].tolist()


@pytest.mark.long
def test_in_the_selection_too():
    sweep = "--compare.sweep=model.init_args.lr=0.3,0.03"
    assert compare(*SPLIT, VARY, sweep, "--compare.methods=none", "--compare.confirm=1") == 0
    runs = pd.read_csv("out/runs.csv")
    assert (runs.groupby("seed")["batches_hash"].nunique() == 1).all()
    assert runs["batches_hash"].nunique() == 4


@pytest.mark.slow
def test_from_python_an_argument_of_the_data_or_of_the_module():
    trainer = {"max_epochs": 1, "accelerator": "cpu"}
    arguments = {"monitor": "val_acc", "trainer": trainer, "sweep": None, "confirm": 2, "jobs": 2, "vary": "seed"}

    def make(seed):
        return TinyModel(width=seed)

    compare_in_python(TinyModel, lambda seed: Split(seed=seed), "none", out="data", **arguments)
    compare_in_python(make, Split, "none", out="both", **arguments)
    data, both = read_results("data").values(), read_results("both").values()
    assert len({result["batches_hash"] for result in data}) == 2
    # `Split` has such an argument, too
    assert {result["batches_hash"] for result in both} == {result["batches_hash"] for result in data}
    assert json.loads(Path("both/comparison.json").read_text())["question"]["varied"] == "seed"
