"""The search of the learning rate, from the key that sets it to the selected value."""

import json
import warnings
from pathlib import Path

import pandas as pd
import pytest

from lightning_znorm.__main__ import main
from lightning_znorm.compare import compare as compare_in_python
from tests.compare.helpers import FLAGS, ODD, TINY, read_results, refusal
from tests.compare.tiny import TinyData, TinyModel

KEY = "model.init_args.lr"
AROUND = [0.0316, 0.1, 0.316]  # half decades about the rate of `TinyModel`
UNSWEPT = [flag for flag in FLAGS if not flag.startswith("--compare.sweep")]
QUICK = ["--trainer.max_epochs=1", "--compare.methods=znorm", "--compare.confirm=1", "--compare.trials=3"]


def compare(*flags):
    """Run the command without any `--compare.sweep` but those, and return its status."""
    try:
        main(["compare", *UNSWEPT, *QUICK, *flags])
    except SystemExit as error:
        return error.code
    return 0


def keys():
    return json.loads(Path("out/comparison.json").read_text())["question"]["keys"]


def check_search(runs, key, values):
    """Each value is tried once, all of three again with two seeds, and the best has a fresh seed."""
    selection, confirmation = (runs[runs["stage"] == stage] for stage in ("selection", "confirmation"))
    seeds = {value: [*group] for value, group in selection.groupby(key)["seed"]}
    assert seeds == {value: [0, 1, 2] for value in values}
    assert confirmation["seed"].tolist() == [3]
    means = selection.groupby(key)["validation"].mean()
    assert means[confirmation[key].item()] == pytest.approx(means.max(), rel=1e-6)


@pytest.mark.slow
def test_the_default_is_a_search_from_the_configured_rate(capsys):
    assert compare() == 0
    printed = capsys.readouterr()
    assert "10 runs (1 x up to 9 to select a setting, 1 x 1 to confirm it)" in printed.err
    assert keys() == [KEY]
    runs = pd.read_csv("out/runs.csv")
    check_search(runs, KEY, AROUND)
    assert runs["train_loss"].nunique() == 10  # the values reach the runs
    summary = Path("out/summary.md").read_text()
    assert f"`{KEY}` was searched with 3 values" in summary
    assert "val_acc of each setting in the selection (higher is better)" in summary
    (selected,) = {result["setting"][KEY] for result in read_results("out").values() if result["seed"] == 3}
    means = runs[runs["stage"] == "selection"].groupby(KEY)["validation"].mean()
    assert f"| lr={selected:g}" in summary
    assert f"**{100 * means[selected]:.1f} (" in summary
    # known from the folder: nothing is tried again, and more pairs follow the same selection
    assert compare() == 0
    assert "Trying" not in capsys.readouterr().err
    assert compare("--compare.confirm=2") == 0
    assert "11 runs (1 x up to 9 to select a setting, 1 x 2 to confirm it), 10 of them done" in capsys.readouterr().err
    assert [result["setting"][KEY] for result in read_results("out").values() if result["seed"] > 2] == [selected] * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sweep", "values"),
    [
        ("lr=auto(1e-2)", ["0.00316", "0.01", "0.0316"]),
        ("model.init_args.lr=1e-2..1", ["0.0316", "0.1", "0.316"]),
        ("lr=0.05..0.2", ["0.1"]),  # the others are beyond the ends
        ("lr={znorm: [0.05, 0.07]}", ["0.05", "0.07"]),
    ],
)
def test_a_search_from_elsewhere(capsys, sweep, values):
    """A start, a range; the last one is no search, and has values of its own for a method."""
    assert compare(f"--compare.sweep={sweep}", "--compare.dry_run") == 0
    *runs, more, _ = (line.strip() for line in capsys.readouterr().out.splitlines())
    assert runs == [f"znorm, lr={value}, seed 0" for value in values]
    assert more == "… and what follows from these"


@pytest.mark.long
def test_methods_may_have_ranges_of_their_own():
    sweep = "lr={none: [0.3], znorm: 1e-2..1e-1}"
    flags = ["--compare.methods=none,znorm", "--compare.confirm=6", "--compare.trials=2", "--trainer.max_epochs=1"]
    assert compare(f"--compare.sweep={sweep}", *flags) == 0
    runs = pd.read_csv("out/runs.csv")
    assert (runs.loc[runs["method"] == "none", KEY] == 0.3).all()
    assert set(runs.loc[runs["method"] == "none", "stage"]) == {"confirmation"}
    tried = runs.loc[(runs["method"] == "znorm") & (runs["stage"] == "selection"), KEY]
    assert len(tried) == 2 * 3
    assert tried.between(0.01, 0.1).all()
    assert len(runs) == 2 * 3 + 2 * 6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            [f"--model={ODD}.Misleading", "--compare.sweep=lr=auto"],
            f"changing {KEY} does not change the optimizer's learning rate. Name the key that sets it",
        ),
        (
            [f"--model={ODD}.Several", "--compare.methods=none"],
            f"several keys change the optimizers' learning rates: {KEY}, model.init_args.learning_rate. Name one, as in"
            f" `{KEY}=auto`, or sweep nothing",
        ),
        (
            ["--compare.sweep=model.init_args.pause=auto(1e-3)"],
            "changing model.init_args.pause does not change the optimizer's learning rate",
        ),
    ],
)
def test_no_key_or_several(capsys, flags, message):
    assert message in refusal(capsys, *flags, command=compare)
    assert not Path("out").exists()


@pytest.mark.slow
def test_one_of_several_keys_can_be_named():
    named = ["--compare.sweep=model.init_args.learning_rate=auto", "--compare.trials=1", "--compare.methods=none"]
    assert compare(f"--model={ODD}.Several", *named) == 0
    assert keys() == ["model.init_args.learning_rate"]
    assert [*pd.read_csv("out/runs.csv")["model.init_args.learning_rate"]] == [0.2, 0.2]


@pytest.mark.slow
def test_the_one_of_two_keys_that_changes_the_rate():
    assert compare(f"--model={ODD}.Renamed", "--compare.trials=1") == 0
    assert keys() == ["model.init_args.learning_rate"]


@pytest.mark.slow
def test_a_name_that_misleads_is_told_and_not_swept_by_default():
    with pytest.warns(
        UserWarning, match=f"Changing {KEY} does not change the optimizer's learning rate, so that it is"
    ):
        assert compare(f"--model={ODD}.Misleading") == 0
    assert keys() == []
    (result,) = read_results("out").values()
    assert (result["seed"], result["setting"]) == (3, {})
    assert "may have a better one: sweep the learning rate" in Path("out/summary.md").read_text()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Changing")
        assert compare(f"--model={ODD}.Misleading") == 0  # known from the folder


def test_nothing_is_swept_by_default_where_nothing_is_called_a_rate(capsys):
    assert compare(f"--model={TINY}.Deaf", "--compare.dry_run") == 0
    printed = capsys.readouterr()
    assert "1 run (1 x 1 to compare)" in printed.out
    assert "Changing" not in printed.err


@pytest.mark.slow
def test_an_optimizer_of_the_command_line():
    """It replaces that of the module, whose `lr` then has no effect."""
    assert compare("--optimizer=torch.optim.Adam", "--optimizer.lr=0.02", "--compare.trials=1") == 0
    assert keys() == ["optimizer.init_args.lr"]
    assert [*pd.read_csv("out/runs.csv")["optimizer.init_args.lr"]] == [0.02, 0.02]


@pytest.mark.long
def test_an_end_of_what_was_tried_is_told(capsys):
    """The rate is far too low, so that the highest one is best."""
    flags = ["--compare.sweep=lr=auto(1e-4)", "--compare.methods=none", "--compare.monitor=val_loss"]
    assert compare(*flags) == 0
    assert "The selected setting of `none`, lr=0.000316, is at an end of what was tried" in capsys.readouterr().out
    # with more values, it goes on beyond that
    assert compare(*flags, "--compare.trials=6") == 0
    assert {result["setting"][KEY] for result in read_results("out").values()} >= {1e-5, 1e-3}


PYTHON = {"monitor": "val_acc", "trainer": {"max_epochs": 1, "accelerator": "cpu"}, "out": "out", "jobs": 2}


@pytest.mark.slow
@pytest.mark.parametrize("sweep", [{}, pytest.param({"sweep": {"lr": "auto"}}, marks=pytest.mark.long)])
def test_from_python(sweep):
    frame = compare_in_python(TinyModel, TinyData, "znorm", confirm=1, trials=3, **PYTHON, **sweep)
    check_search(pd.read_csv("out/runs.csv"), "lr", AROUND)
    assert frame.loc["znorm", "setting"] in [f"lr={value:g}" for value in AROUND]


@pytest.mark.slow
def test_from_python_with_other_names_and_starts():
    def make(learning_rate=0.02):
        return TinyModel(learning_rate)

    arguments = {**PYTHON, "methods": "none", "confirm": 1, "trials": 1}
    frame = compare_in_python(make, TinyData, **arguments)
    assert frame.loc["none", "setting"] == "learning_rate=0.02"
    frame = compare_in_python(
        lambda lr: TinyModel(lr), TinyData, sweep={"lr": "auto(0.2)"}, **{**arguments, "out": "2"}
    )
    assert frame.loc["none", "setting"] == "lr=0.2"
    frame = compare_in_python(lambda: TinyModel(), TinyData, **{**arguments, "out": "3"})
    assert pd.isna(frame.loc["none", "setting"]) or not frame.loc["none", "setting"]
    with pytest.raises(ValueError, match="`lr` has no positive number in the configuration to start the search from"):
        compare_in_python(lambda lr: TinyModel(lr), TinyData, sweep={"lr": "auto"}, **arguments)
    with pytest.raises(ValueError, match="changing pause does not change the optimizer's learning rate"):
        compare_in_python(TinyModel, TinyData, sweep={"pause": "auto(1e-3)"}, **{**arguments, "out": None})


@pytest.mark.slow
def test_a_folder_without_a_sweep_does_not_keep_a_later_search_away():
    assert compare("--compare.sweep=null") == 0
    assert keys() == []
    assert compare() == 0
    assert keys() == [KEY]
