"""`lightning-znorm compare`, with real processes: what it takes and what it shows."""

import re
from pathlib import Path

import pandas as pd
import pytest
import yaml

from lightning_znorm.__main__ import main
from tests import warm
from tests.compare.helpers import ALONE, FLAGS, ROOT, TINY, TWO, compare, read_results, refusal
from tests.helpers import FIRST_PACKAGE


@pytest.mark.slow
def test_a_module_of_pytorch_lightning():
    flags = ["--package=pytorch_lightning", "--model=pytorch_lightning.demos.boring_classes.BoringModel"]
    flags += ["--trainer.max_steps=2", "--trainer.accelerator=cpu", "--compare.methods=none", "--compare.confirm=1"]
    flags += ["--compare.monitor=validation_step.x", "--compare.mode=min", "--compare.test_monitor=test_step.y"]
    main(["compare", *flags])
    assert pd.read_csv("comparison/runs.csv")["status"].tolist() == ["finished"]
    summary = Path("comparison/summary.md").read_text()
    assert f"lightning-znorm compare --config={Path('comparison/config.yaml').absolute()} --package=" in summary


@pytest.mark.slow
def test_dry_run(capsys):
    flags = ["--compare.sweep=model.init_args.lr=0.3,0.03", "--compare.methods=znorm", "--compare.confirm=1"]
    assert compare(*flags, "--compare.dry_run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.strip() for line in lines[:-1]] == [
        "znorm, lr=0.3, seed 0",
        "znorm, lr=0.03, seed 0",
        "… and what follows from these",
    ]
    stages = "1 x up to 6 to select a setting, 1 x 1 to confirm it"
    time = r"2 side by side, about [\d.:]+ (s|min) to go\."
    assert re.fullmatch(rf"7 runs \({stages}\); {time}", lines[-1])
    assert not Path("out").exists()
    assert compare(*flags) == 0
    capsys.readouterr()
    assert compare(*flags, "--compare.dry_run=true", "--compare.confirm=2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.startswith("[done]") for line in lines] == [True] * 7 + [False] * 2
    assert lines[-2].strip().endswith("seed 4")
    assert "8 runs (1 x up to 6 to select a setting, 1 x 2 to confirm it), 7 of them done" in lines[-1]
    assert len(read_results("out")) == 7


@pytest.mark.slow
def test_the_estimate_is_of_every_step_of_every_run(capsys):
    pause = "--model.init_args.pause=0.05"
    assert compare(pause, "--compare.dry_run=true", "--compare.jobs=1") == 0
    (seconds,) = re.findall(r"about ([\d.]+) s to go", capsys.readouterr().out)
    assert float(seconds) > 12 * 10 * 0.05


@pytest.mark.slow
@pytest.mark.parametrize("package", FIRST_PACKAGE)
def test_lightnings_own_demo_modules(package, capsys):
    boring = f"{package}.demos.boring_classes"
    flags = ["--compare.monitor=validation_step.x", "--compare.test_monitor=test_step.y", "--compare.mode=min"]
    flags += [
        f"--package={package}",
        "--compare.jobs=2",
        "--trainer.max_epochs=1",
        "--trainer.accelerator=cpu",
    ]
    data = f"--data={boring}.BoringDataModule"
    clip = ["--compare.methods=clip", "--compare.confirm=1", "--compare.out=automatic"]
    main(["compare", f"--model={boring}.BoringModel", *flags, *clip])
    # the Trainer clips no gradients of a manual optimization
    for method in ("gc", "znorm(min_ndim=2)"):
        manual = [data, f"--compare.methods={method}", "--compare.confirm=1", f"--compare.out={method}"]
        main(["compare", f"--model={boring}.ManualOptimBoringModel", *flags, *manual])
    for folder in ("automatic", "gc", "znorm(min_ndim=2)"):
        assert pd.read_csv(f"{folder}/runs.csv")["status"].tolist() == ["finished"]


@pytest.mark.long
def test_options_in_a_file_and_a_module_of_the_working_directory(monkeypatch):
    source = Path(__file__).with_name("tiny.py").read_text()
    Path("mine_of_tmp.py").write_text(source)
    config = {
        "model": {"class_path": "mine_of_tmp.TinyModel"},
        "data": {"class_path": "mine_of_tmp.TinyData"},
        "trainer": {"max_epochs": 1, "accelerator": "cpu"},
        "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.1}},
        "compare": {
            "methods": ["mine_of_tmp.Halve(by=0.1)"],
            "sweep": {"optimizer.init_args.lr": [0.1, 0.01]},
            "confirm": [5],
            "monitor": "val_acc",
            "out": "there",
        },
    }
    Path("config.yaml").write_text(yaml.safe_dump(config))
    main(["compare", "--config=config.yaml"])
    runs = pd.read_csv("there/runs.csv")
    assert runs["status"].tolist() == ["finished"] * 7
    assert runs["optimizer.init_args.lr"].tolist()[:2] == [0.1, 0.01]
    assert runs["seed"].tolist()[-1] == 5


@pytest.mark.slow
def test_paths_are_relative_to_the_file_that_names_them():
    Path("configs").mkdir()
    Path("configs/table.txt").write_text("0.3")
    model = {"class_path": f"{TINY}.FromFile", "init_args": {"file": "table.txt", "more": ["table.txt"]}}
    Path("configs/my.yaml").write_text(yaml.safe_dump({"model": model}))
    assert compare("--config=configs/my.yaml", *ALONE) == 0
    assert pd.read_csv("out/runs.csv")["status"].tolist() == ["finished"]


@pytest.mark.slow
def test_a_sweep_of_things_that_are_no_numbers():
    sweep = f"model.class_path={TINY}.TinyModel,{TINY}.Wide trainer.limit_train_batches=null,3"
    assert compare(*ALONE, f"--compare.sweep={sweep}") == 0
    runs = pd.read_csv("out/runs.csv")
    assert set(runs["status"]) == {"finished"}
    first = runs[runs["seed"] == 0]
    assert sorted(first["steps"]) == [6, 6, 10, 10]
    assert first["weights_hash"].nunique() == 2


@pytest.mark.slow
def test_the_first_trial_is_alone_so_that_downloads_do_not_meet():
    four = ["--compare.methods=none,znorm,gc,clip", "--compare.confirm=7"]
    assert compare(f"--data={TINY}.Downloaded", *four, "--compare.dry_run") == 0
    assert Path("downloads.txt").read_text() == "1"


@pytest.mark.slow
def test_seeds_that_make_no_difference_are_told(capsys):
    assert compare(f"--model={TINY}.Deaf", f"--data={TINY}.Unshuffled", "--compare.methods=none", TWO) == 0
    printed = capsys.readouterr().out
    assert "All seeds began with the same weights and saw the same batches" in printed
    assert "better than" not in printed


@pytest.mark.slow
def test_unequal_batches_are_told(capsys):
    assert compare(f"--data={TINY}.Unshared") == 0
    assert "The batches differ between methods in 6 of 6 cases" in capsys.readouterr().out


@pytest.mark.slow
def test_configured_callbacks_and_loggers_are_kept():
    trainer = ["--trainer.logger=lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir=logs"]
    trainer += ["--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint"]
    trainer += ["--trainer.callbacks+=lightning.pytorch.callbacks.TQDMProgressBar"]
    trainer += ["--trainer.callbacks+=lightning.pytorch.callbacks.LearningRateMonitor"]
    assert compare("--compare.methods=znorm", TWO, *trainer) == 0
    assert pd.read_csv("out/runs.csv")["status"].tolist() == ["finished"] * 2
    assert len(list(Path("logs").rglob("*.ckpt"))) == 2


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], False),
        (["--compare.{}"], True),
        (["--compare.{}", "--compare.confirm=6"], True),
        (["--compare.{}", "true"], True),
        (["--compare.{}=false"], False),
        (["--compare.{}", "--compare.{}=false"], False),
        (["--compare.{}", "false", "--compare.{}"], True),
        (["--config=on.yaml"], True),
        (["--config=on.yaml", "--compare.{}=false"], False),
        (["--compare.{}=false", "--config=on.yaml"], True),
        (["--config=off.yaml", "--compare.{}"], True),
    ],
)
@pytest.mark.parametrize("name", ["dry_run", "retry"])
def test_flags(capsys, name, flags, expected):
    Path("on.yaml").write_text(yaml.safe_dump({"compare": {name: True}}))
    Path("off.yaml").write_text(yaml.safe_dump({"compare": {name: False}}))
    assert compare(*[flag.format(name) for flag in flags], "--print_config") == 0
    assert yaml.safe_load(capsys.readouterr().out)["compare"][name] is expected


@pytest.mark.slow
def test_a_swept_key_with_a_hyphen():
    """An argument that is a dict can have such keys; the runs are those of the same rates."""
    assert compare(*ALONE, "--compare.sweep=model.init_args.lr=0.03", "--compare.out=plain") == 0
    sweep = "model.init_args.options.learning-rate=0.03"
    assert compare(*ALONE, f"--model={TINY}.WithOptions", f"--compare.sweep={sweep}") == 0
    runs, plain = pd.read_csv("out/runs.csv"), pd.read_csv("plain/runs.csv")
    assert runs["status"].tolist() == ["finished"]
    assert runs["model.init_args.options.learning-rate"].tolist() == [0.03]
    assert runs["train_loss"].tolist() == plain["train_loss"].tolist()


@pytest.mark.long
def test_an_output_that_is_not_utf8():
    """What it cannot encode is replaced: here the name of a swept class."""
    command = ["-m", "lightning_znorm", "compare", *FLAGS, *ALONE]
    environment = {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    sweep = f"--compare.sweep=model.init_args.optimizer=SGD,Añadido model.class_path={TINY}.Named"
    done = warm.run(*command, sweep, env=environment, text=False)
    assert done.returncode == 0, done.stderr
    assert b"A?adido" in done.stderr
    assert b"| none " in done.stdout
    assert Path("out/report.html").exists()


def test_help_names_what_is_compared(capsys):
    assert compare("--help") == 0
    text = capsys.readouterr().out
    assert "usage: lightning-znorm compare" in text
    assert "--compare.methods" in text


def test_missing_extra(capsys, monkeypatch):
    import sys

    import lightning_znorm.compare

    for name in [name for name in sys.modules if name.startswith("lightning_znorm.compare")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr("lightning_znorm.errors.find_spec", lambda name: None if name == "statsmodels" else name)
    assert 'pip install "lightning-znorm[compare]"' in refusal(capsys)
    del lightning_znorm
