"""`lightning-znorm compare`, with real processes."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
import yaml

from lightning_znorm.__main__ import main
from lightning_znorm.compare.question.methods import parse_methods
from lightning_znorm.compare.question.run import Run, Setting
from lightning_znorm.compare.runs.recipes import ConfiguredRecipe
from tests import warm
from tests.compare.helpers import FLAGS, ROOT, TINY, compare, read_results, refusal
from tests.helpers import FIRST_PACKAGE


class Page(HTMLParser):
    """Collects what a page would load, and its text."""

    def __init__(self, source):
        super().__init__()
        self.loads, self.text = [], ""
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.loads += [value for name, value in attrs if name in ("src", "href", "srcset", "data")]

    def handle_data(self, data):
        self.text += data


@pytest.mark.slow
@pytest.mark.drawn
@pytest.mark.parametrize(
    ("lrs", "methods"),
    [
        ([0.3], ["znorm(min_ndim=2)"]),
        pytest.param([0.3, 0.03], ["clip(max_norm=0.01)", "gc", "znorm(min_ndim=2)"], marks=pytest.mark.long),
    ],
)
def test_a_whole_comparison(capsys, lrs, methods):
    methods = ["none", *methods, f"{TINY}.Halve"]
    sweep = f"model.init_args.lr={','.join(map(str, lrs))} data.init_args.batch_size=20,40"
    assert compare(f"--compare.sweep={sweep}", f"--compare.methods={','.join(methods)}") == 0
    printed = capsys.readouterr()
    count = len(methods) * 2 * len(lrs) * 2
    scope = f"{len(methods)} methods x {2 * len(lrs)} settings x 2 seeds"
    assert f"{count} runs ({scope}); 2 side by side" in printed.err
    assert f"[{count}/{count}]" in printed.err
    assert "two seeds are too few to tell" in printed.out

    runs = pd.read_csv("out/runs.csv")
    assert len(runs) == count
    assert set(runs["status"]) == {"finished"}
    assert set(runs["model.init_args.lr"]) == set(lrs)
    assert (runs["epochs"] == 2).all()
    assert set(runs["steps"]) == {10, 20}
    # methods share weights and batches of a seed and a batch size, and nothing else
    shared = runs.groupby(["seed", "data.init_args.batch_size"])[["weights_hash", "batches_hash"]].nunique()
    assert (shared == 1).all(axis=None)
    assert runs["weights_hash"].nunique() == 2
    assert runs["batches_hash"].nunique() == 4
    # and they are different methods
    at_one_setting = runs[(runs["model.init_args.lr"] == 0.3) & (runs["data.init_args.batch_size"] == 20)]
    assert at_one_setting[at_one_setting["seed"] == 0]["train_loss"].nunique() == len(methods)

    summary = Path("out/summary.md").read_text()
    page = Page(Path("out/report.html").read_text())
    for name in ("differences.png", "curves.png", "sweep.png"):
        assert Path("out", name).read_bytes().startswith(b"\x89PNG")
        assert f"]({name})" in summary
    assert len(page.loads) == 3
    assert all(source.startswith("data:image/png;base64,") for source in page.loads)
    assert "two seeds are too few to tell" in page.text
    assert "`znorm(min_ndim=2)`" in summary


@pytest.mark.slow
def test_goes_on_where_it_was_and_takes_more(capsys):
    assert compare("--compare.seeds=1") == 0
    first = read_results("out")
    stamps = {path: path.stat().st_mtime_ns for path in Path("out").glob("runs/*/result.json")}
    assert compare("--compare.seeds=1") == 0
    assert "Trying" in capsys.readouterr().err
    assert compare("--compare.seeds=2", "--compare.methods=none,znorm,clip") == 0
    err = capsys.readouterr().err
    assert "6 runs (3 methods x 1 settings x 2 seeds), 2 of them done" in err
    assert "[3/6]" in err
    assert "[2/6]" not in err
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    everything = read_results("out")
    assert len(everything) == 6
    assert first.items() <= everything.items()
    # seen again, with nothing to do
    assert compare("--compare.seeds=2", "--compare.methods=none,znorm,clip") == 0
    assert "Trying" not in capsys.readouterr().err
    # the metric may change without a run
    assert compare("--compare.monitor=val_loss", "--compare.seeds=2") == 0
    assert "test_loss" in Path("out/summary.md").read_text()


@pytest.mark.slow
def test_a_run_is_what_fit_and_test_make_of_it():
    methods = parse_methods("none,znorm(min_ndim=2)")
    assert compare("--compare.methods=none,znorm(min_ndim=2)", "--compare.seeds=[3]") == 0
    runs = pd.read_csv("out/runs.csv").set_index("method")
    recipe = ConfiguredRecipe(Path("out/config.yaml"), {}, "lightning.pytorch")
    for method, (_, run) in zip(methods, runs.iterrows(), strict=True):
        main(
            [
                "fit",
                *recipe.make_flags(Run(method, Setting(), 3)),
                "--trainer.logger=lightning.pytorch.loggers.CSVLogger",
                "--trainer.logger.save_dir=fit",
            ]
        )
        logs = sorted(Path("fit").rglob("metrics.csv"), key=lambda path: path.stat().st_mtime)[-1]
        assert pd.read_csv(logs)["val_acc"].dropna().iloc[-1] == pytest.approx(run["validation"])


@pytest.mark.slow
def test_a_module_of_pytorch_lightning():
    flags = ["--package=pytorch_lightning", "--model=pytorch_lightning.demos.boring_classes.BoringModel"]
    flags += ["--trainer.max_steps=2", "--trainer.accelerator=cpu", "--compare.methods=none", "--compare.seeds=1"]
    flags += ["--compare.monitor=validation_step.x", "--compare.mode=min", "--compare.test_monitor=test_step.y"]
    main(["compare", *flags])
    assert pd.read_csv("comparison/runs.csv")["status"].tolist() == ["finished"]
    summary = Path("comparison/summary.md").read_text()
    assert f"lightning-znorm compare --config={Path('comparison/config.yaml').absolute()} --package=" in summary


@pytest.mark.slow
def test_crashes_and_divergences_do_not_stop_the_others(capsys):
    flags = ["--compare.sweep=model.init_args.fail=raise,kill,diverge", "--compare.methods=none", "--compare.seeds=2"]
    assert compare(*flags) == 0
    runs = pd.read_csv("out/runs.csv")
    unlucky = runs[runs["seed"] == 1].set_index("model.init_args.fail")
    assert unlucky["status"].to_dict() == {"raise": "crashed", "kill": "crashed", "diverge": "diverged"}
    assert unlucky.loc["raise", "error"] == "RuntimeError: out of luck"
    assert "signal 9" in unlucky.loc["kill", "error"]
    assert (runs[runs["seed"] != 1]["status"] == "finished").all()
    assert "3 runs of `none` diverged or crashed" in capsys.readouterr().out
    results = read_results("out")
    assert compare(*flags) == 0
    assert read_results("out") == results
    capsys.readouterr()
    assert compare(*flags, "--compare.retry") == 0
    assert capsys.readouterr().err.count("crashed: ") == 2


@pytest.mark.slow
def test_dry_run(capsys):
    flags = ["--compare.sweep=model.init_args.lr=0.3,0.03", "--compare.methods=znorm", "--compare.seeds=2"]
    assert compare(*flags, "--compare.dry_run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert lines[0].strip() == "znorm, lr=0.3, seed 0"
    assert re.fullmatch(
        r"4 runs \(1 methods x 2 settings x 2 seeds\); 2 side by side, about [\d.:]+ (s|min) to go\.", lines[-1]
    )
    assert not Path("out").exists()
    assert compare(*flags, "--compare.seeds=1") == 0
    capsys.readouterr()
    assert compare(*flags, "--compare.dry_run=true") == 0
    assert capsys.readouterr().out.count("[done]") == 2


@pytest.mark.slow
def test_the_estimate_is_of_every_step_of_every_run(capsys):
    pause = "--model.init_args.pause=0.05"
    assert compare(pause, "--compare.dry_run=true", "--compare.seeds=4", "--compare.jobs=1") == 0
    (seconds,) = re.findall(r"about ([\d.]+) s to go", capsys.readouterr().out)
    assert float(seconds) > 8 * 10 * 0.05


@pytest.mark.slow
@pytest.mark.parametrize("package", FIRST_PACKAGE)
def test_lightnings_own_demo_modules(package, capsys):
    boring = f"{package}.demos.boring_classes"
    flags = ["--compare.monitor=validation_step.x", "--compare.test_monitor=test_step.y", "--compare.mode=min"]
    flags += [
        f"--package={package}",
        "--compare.seeds=1",
        "--compare.jobs=2",
        "--trainer.max_epochs=1",
        "--trainer.accelerator=cpu",
    ]
    data = f"--data={boring}.BoringDataModule"
    main(["compare", f"--model={boring}.BoringModel", *flags, "--compare.methods=clip", "--compare.out=automatic"])
    # the Trainer clips no gradients of a manual optimization
    manual = [data, "--compare.methods=gc,znorm(min_ndim=2)", "--compare.out=manual"]
    main(["compare", f"--model={boring}.ManualOptimBoringModel", *flags, *manual])
    assert pd.read_csv("automatic/runs.csv")["status"].tolist() == ["finished"]
    assert pd.read_csv("manual/runs.csv")["status"].tolist() == ["finished"] * 2


@pytest.mark.slow
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
            "seeds": [5],
            "monitor": "val_acc",
            "out": "there",
        },
    }
    Path("config.yaml").write_text(yaml.safe_dump(config))
    main(["compare", "--config=config.yaml"])
    runs = pd.read_csv("there/runs.csv")
    assert runs["status"].tolist() == ["finished"] * 2
    assert runs["optimizer.init_args.lr"].tolist() == [0.1, 0.01]


@pytest.mark.slow
def test_paths_are_relative_to_the_file_that_names_them():
    Path("configs").mkdir()
    Path("configs/table.txt").write_text("0.3")
    model = {"class_path": f"{TINY}.FromFile", "init_args": {"file": "table.txt", "more": ["table.txt"]}}
    Path("configs/my.yaml").write_text(yaml.safe_dump({"model": model}))
    assert compare("--config=configs/my.yaml", "--compare.seeds=1") == 0
    assert pd.read_csv("out/runs.csv")["status"].tolist() == ["finished"] * 2


@pytest.mark.slow
def test_a_sweep_of_things_that_are_no_numbers():
    sweep = f"model.class_path={TINY}.TinyModel,{TINY}.Wide trainer.limit_train_batches=null,3"
    assert compare("--compare.methods=none", "--compare.seeds=1", f"--compare.sweep={sweep}") == 0
    runs = pd.read_csv("out/runs.csv")
    assert set(runs["status"]) == {"finished"}
    assert sorted(runs["steps"]) == [6, 6, 10, 10]
    assert runs["weights_hash"].nunique() == 2


@pytest.mark.slow
def test_the_first_trial_is_alone_so_that_downloads_do_not_meet():
    assert compare(f"--data={TINY}.Downloaded", "--compare.seeds=1") == 0
    assert Path("downloads.txt").read_text() == "1"


@pytest.mark.slow
def test_seeds_that_make_no_difference_are_told(capsys):
    assert compare(f"--model={TINY}.Deaf", f"--data={TINY}.Unshuffled", "--compare.methods=none") == 0
    printed = capsys.readouterr().out
    assert "All seeds began with the same weights and saw the same batches" in printed
    assert "better than" not in printed


@pytest.mark.slow
def test_unequal_batches_are_told(capsys):
    assert compare(f"--data={TINY}.Unshared", "--compare.seeds=1") == 0
    assert "The batches differ between methods in 1 of 1 case" in capsys.readouterr().out


@pytest.mark.slow
def test_configured_callbacks_and_loggers_are_kept():
    trainer = ["--trainer.logger=lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir=logs"]
    trainer += ["--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint"]
    trainer += ["--trainer.callbacks+=lightning.pytorch.callbacks.TQDMProgressBar"]
    trainer += ["--trainer.callbacks+=lightning.pytorch.callbacks.LearningRateMonitor"]
    assert compare("--compare.seeds=1", *trainer) == 0
    assert pd.read_csv("out/runs.csv")["status"].tolist() == ["finished"] * 2
    assert len(list(Path("logs").rglob("*.ckpt"))) == 2


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], False),
        (["--compare.{}"], True),
        (["--compare.{}", "--compare.seeds=2"], True),
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
    flags = ["--compare.methods=znorm", "--compare.seeds=1"]
    assert compare(*flags, "--compare.sweep=model.init_args.lr=0.3,0.03", "--compare.out=plain") == 0
    sweep = "model.init_args.options.learning-rate=0.3,0.03"
    assert compare(*flags, f"--model={TINY}.WithOptions", f"--compare.sweep={sweep}") == 0
    runs, plain = pd.read_csv("out/runs.csv"), pd.read_csv("plain/runs.csv")
    assert runs["status"].tolist() == ["finished"] * 2
    assert runs["model.init_args.options.learning-rate"].tolist() == [0.3, 0.03]
    assert runs["train_loss"].tolist() == plain["train_loss"].tolist()


@pytest.mark.long
def test_an_output_that_is_not_utf8():
    """What it cannot encode is replaced: here the dash of an empty cell, and the name of a swept class."""
    command = ["-m", "lightning_znorm", "compare", *FLAGS, "--compare.seeds=1"]
    environment = {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    sweep = f"--compare.sweep=model.init_args.optimizer=SGD,Añadido model.class_path={TINY}.Named"
    done = warm.run(*command, sweep, env=environment, text=False)
    assert done.returncode == 0, done.stderr
    assert b"A?adido" in done.stderr
    assert b"| none " in done.stdout
    assert b"?" in done.stdout
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
