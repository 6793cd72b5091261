"""The trial of the user's own configuration: what is sound passes, what is wrong is told before hours are spent."""

import os
import shlex
from pathlib import Path

import pandas as pd
import pytest

from lightning_znorm.__main__ import main
from lightning_znorm.compare.question.methods import Method
from lightning_znorm.compare.question.run import Run, Setting
from lightning_znorm.compare.runs.perform import Task, locate_checkpoints
from tests.compare.helpers import ALONE as ONE
from tests.compare.helpers import ODD, TINY, TWO, compare, read_results, refusal

ALONE = [*ONE, "--compare.monitor=val_loss"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        [f"--model={ODD}.OneCycle", "--trainer.max_steps=8"],
        pytest.param([f"--model={ODD}.WarmUp", "--trainer.max_epochs=3"], marks=pytest.mark.long),
        [f"--model={ODD}.Lazy"],
        pytest.param([f"--model={ODD}.Limited"], marks=pytest.mark.long),
        [f"--data={ODD}.Unsized", "--trainer.max_epochs=-1", "--trainer.max_steps=6", "--trainer.val_check_interval=2"],
        [f"--data={ODD}.Objects"],
        [f"--data={ODD}.FrozenBatches"],
        pytest.param([f"--model={ODD}.PartlyLazy"], marks=pytest.mark.long),
        pytest.param(
            [f"--model={ODD}.Noting", f"--trainer.logger={ODD}.Extended", "--trainer.logger.save_dir=logs"],
            marks=pytest.mark.long,
        ),
        pytest.param([f"--trainer.callbacks+={ODD}.Timer"], marks=pytest.mark.long),
        pytest.param(
            ["--trainer.min_epochs=2", "--trainer.check_val_every_n_epoch=2", "--trainer.max_epochs=4"],
            marks=pytest.mark.long,
        ),
        ["--trainer.callbacks+=lightning.pytorch.callbacks.EarlyStopping", "--trainer.callbacks.monitor=val_loss"],
    ],
    ids=lambda flags: " ".join(flag.rpartition(".")[2] for flag in flags[:1]),
)
def test_a_sound_configuration_passes(flags):
    assert compare(*ALONE, *flags) == 0
    (result,) = read_results("out").values()
    assert result["status"] == "finished", result["error"]
    assert result["steps"] > 4  # the trial's
    assert len(result["weights_hash"]) == 64
    # and the same command finds its folder again
    assert compare(*ALONE, *flags) == 0


@pytest.mark.slow
def test_the_trial_sees_the_configuration_of_the_runs_and_ends_early(capsys):
    """The schedule of `OneCycle` is as long in the trial as it is in the run, whose steps are many more."""
    flags = [f"--model={ODD}.OneCycle", "--trainer.max_steps=1000000", "--compare.dry_run=true"]
    assert compare(*ALONE, *flags, "--trainer.max_epochs=-1") == 0
    assert "1 run (1 x 1 to compare)" in capsys.readouterr().out


@pytest.mark.slow
def test_a_monitor_that_comes_later():
    flags = [f"--model={ODD}.Rare", "--compare.monitor=val_fid_loss"]
    with pytest.warns(UserWarning, match="'val_fid_loss', but the module does not log that in its validation"):
        assert compare(*ALONE, *flags) == 0
    (result,) = read_results("out").values()
    assert result["curve"][-1]["metrics"]["val_fid_loss"] > 0


@pytest.mark.slow
def test_a_monitor_that_never_comes_stops_at_the_first_run(capsys):
    flags = ["--compare.monitor=val_accuracy", "--compare.test_monitor=test_acc"]
    message = refusal(capsys, *flags)
    assert "does not log that in its validation. Did you mean 'val_acc'? It logs val_loss, val_acc." in message
    assert len(read_results("out")) <= 2
    # the run is not lost
    before = {path: path.stat().st_mtime_ns for path in Path("out").glob("runs/*/result.json")}
    assert compare(*ONE, "--compare.monitor=val_acc") == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([f"--data={ODD}.EmptyValidation"], "the `val_dataloader` has no batch"),
        (
            [f"--model={ODD}.Silent"],
            "logs nothing at the end of its validation. Log a metric in `validation_step`, as in",
        ),
        ([f"--model={ODD}.PerStep"], "(without `on_epoch=False`)"),
        ([f"--model={TINY}.WithoutTest"], "so results must be reported on a separate test split: add `test_step`"),
    ],
)
def test_refusals_name_the_remedy_and_leave_nothing_behind(capsys, flags, message):
    assert message in refusal(capsys, "--compare.methods=none", *flags)
    assert not Path("out").exists()


@pytest.mark.slow
def test_checkpoints_of_runs_and_trials_do_not_mix():
    flags = ["--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint", "--trainer.callbacks.dirpath=kept"]
    flags += ["--compare.methods=none", TWO]
    assert compare(*flags, "--compare.dry_run=true") == 0
    assert not Path("kept").exists()
    assert compare(*flags) == 0
    kept = {path.parent.name: path.name for path in Path("kept").rglob("*.ckpt")}
    assert kept == dict.fromkeys(read_results("out"), "epoch=1-step=10.ckpt")


@pytest.mark.slow
def test_checkpoints_that_the_module_brings_do_not_mix():
    model = f"--model={ODD}.Saving"
    assert compare(model, *ONE, "--compare.dry_run") == 0
    assert not Path("kept").exists()
    assert compare(model, "--compare.methods=none", TWO) == 0
    assert {path.parent.name for path in Path("kept").rglob("*.ckpt")} == {*read_results("out")}


def test_checkpoints_of_a_remote_folder_keep_its_protocol():
    run = Run(Method("none"), Setting(), 0)
    task = Task(run, None, Path("runs"))
    assert locate_checkpoints("s3://bucket/kept/", task) == f"s3://bucket/kept/{run.key}"


@pytest.mark.slow
def test_code_that_has_changed_is_another_configuration(capsys):
    source = "from mine_below import WIDTH\nfrom tests.compare.tiny import TinyModel\nclass Model(TinyModel):\n"
    Path("mine_that_changes.py").write_text(source + "    def __init__(self): super().__init__(width=WIDTH)")
    Path("mine_below.py").write_text("WIDTH = 4")
    flags = ["--model=mine_that_changes.Model", *ONE]
    assert compare(*flags) == 0
    Path("mine_below.py").write_text("WIDTH = 8")
    assert "another configuration (code.mine_below is" in refusal(capsys, *flags)


@pytest.mark.slow
def test_results_of_a_module_that_changes_its_folder():
    assert compare(*ALONE, f"--model={ODD}.Moving") == 0
    assert [result["status"] for result in read_results("out").values()] == ["finished"]
    assert Path("out/report.html").exists()


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_split_without_batches(capsys, split):
    assert f"leave no batch of the {split} split (`trainer.limit_{split}_batches: 0" in refusal(
        capsys, f"--trainer.limit_{split}_batches=0.0"
    )


@pytest.mark.slow
def test_results_that_disappear_are_told(capsys):
    assert compare(f"--model={ODD}.Destructive", "--compare.methods=none", TWO, "--compare.jobs=1") == 130
    printed = capsys.readouterr()
    assert "Results have disappeared from" in printed.err
    assert ": 1 of 2 are left. Run the same command again" in printed.err
    assert "Unfinished: 1 of 2 runs are done" in printed.out


@pytest.mark.slow
def test_each_run_imports_the_users_modules_itself():
    """As `fit` does: what a module makes when it is imported, a file that it opens, belongs to one run."""
    assert compare(f"--data={ODD}.Salted", "--compare.methods=none", TWO) == 0
    assert pd.read_csv("out/runs.csv")["batches_hash"].nunique() == 2


@pytest.mark.slow
def test_loaders_with_workers_start_as_in_fit():
    """The dataset holds a function that only a fork takes along."""
    assert compare(*ALONE, f"--data={ODD}.Working") == 0
    (result,) = read_results("out").values()
    assert result["status"] == "finished", result["error"]


@pytest.mark.long
def test_the_repeat_commands_repeat(capsys):
    """Again and again, from anywhere, with the same weights and the metric of the test."""
    sweep = "--compare.sweep=model.init_args.lr=0.3"
    assert compare(sweep, "--compare.methods=none,znorm(min_ndim=2)", "--trainer.max_epochs=1") == 0
    summary = Path("out/summary.md").read_text()
    commands = [line for line in summary.splitlines() if line.startswith("lightning-znorm compare --config=")]
    assert len(commands) == 2
    known = {name: result["test"] for name, result in read_results("out").items()}
    Path("elsewhere").mkdir()
    os.chdir("elsewhere")
    for command in (*commands, commands[0]):
        main(shlex.split(command)[1:])
    repeated = {
        name: result["test"] for folder in Path("repeat").iterdir() for name, result in read_results(folder).items()
    }
    assert len(repeated) == 2
    assert repeated.items() <= known.items()
