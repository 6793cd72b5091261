"""`lightning-znorm compare`, with real processes."""

import re
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import yaml

from lightning_znorm.__main__ import main
from lightning_znorm.compare.question.methods import parse_methods
from lightning_znorm.compare.question.run import Run, Setting
from lightning_znorm.compare.runs.recipes import ConfiguredRecipe
from tests import warm
from tests.compare.helpers import ALONE, FLAGS, ODD, ROOT, TINY, TWO, compare, read_results, refusal, report
from tests.compare.tiny import TinyData
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
@pytest.mark.parametrize(
    ("lrs", "others"),
    [
        ([0.3], ["znorm(min_ndim=2)"]),
        pytest.param([0.3, 0.03], ["znorm(min_ndim=2)", f"{TINY}.Halve"], marks=pytest.mark.long),
    ],
)
def test_a_whole_comparison(capsys, lrs, others):
    methods, pairs = ["none", *others], 6 if len(others) == 1 else 7
    sweep = f"model.init_args.lr={','.join(map(str, lrs))} data.init_args.batch_size=20,40"
    flags = [f"--compare.methods={','.join(methods)}", f"--compare.confirm={pairs}"]
    assert compare(f"--compare.sweep={sweep}", *flags) == 0
    printed = capsys.readouterr()
    settings = 2 * len(lrs)
    selecting = settings + 2 * min(settings, 3)  # one seed for each, two more for the best three
    count = len(methods) * (selecting + pairs)
    stages = f"{len(methods)} x up to {selecting} to select a setting, {len(methods)} x {pairs} to confirm it"
    assert f"{count} runs ({stages}); 2 side by side" in printed.err
    assert f"[{count}/{count}]" in printed.err

    runs = pd.read_csv("out/runs.csv")
    assert len(runs) == count
    assert set(runs["status"]) == {"finished"}
    assert set(runs["model.init_args.lr"]) == set(lrs)
    assert (runs["epochs"] == 2).all()
    assert set(runs["steps"]) == {10, 20}
    assert set(runs["threads"]) == {1}
    # methods share weights and batches of a seed and a batch size, and nothing else
    cases = runs.groupby(["seed", "data.init_args.batch_size"])[["weights_hash", "batches_hash"]]
    assert (cases.nunique() == 1).all(axis=None)
    assert runs["weights_hash"].nunique() == 3 + pairs
    assert runs["batches_hash"].nunique() == len(cases)
    # and they are different methods
    at_one_setting = runs[(runs["model.init_args.lr"] == 0.3) & (runs["data.init_args.batch_size"] == 20)]
    assert at_one_setting[at_one_setting["seed"] == 0]["train_loss"].nunique() == len(methods)

    tests = check_stages(runs, pairs)
    summary = pd.read_csv("out/summary.csv").set_index("method")
    assert summary["test"].to_dict() == pytest.approx(tests.mean().to_dict())
    for method in others:
        differences = (tests[method] - tests["none"]).to_numpy()
        row = summary.loc[method]
        assert row["pairs"] == pairs
        assert row["difference"] == pytest.approx(differences.mean(), abs=1e-12)
        assert row["p"] == pytest.approx(flip_signs(differences))
        assert row["answer"] == (
            "undecided" if row["p_holm"] > 0.05 else "better" if row["difference"] > 0 else "worse"
        )
    text = Path("out/summary.md").read_text()
    for shown in (printed.out, text):
        assert shown.startswith("# Do" if len(others) > 1 else "# Does znorm(min_ndim=2) beat none?")
        assert "`znorm(min_ndim=2)`" in shown
    assert "Each was trained with one seed, and the three best with two more (the seeds 0, 1 and 2)" in text
    assert f"{pairs} fresh seeds that all methods share" in text
    assert Path("out/report.html").exists()


def check_stages(runs, pairs):
    """Each method is confirmed at its best setting of the selection; return the test metrics by seed and method."""
    keys = ["model.init_args.lr", "data.init_args.batch_size"]
    selection, confirmation = (runs[runs["stage"] == stage] for stage in ("selection", "confirmation"))
    assert set(selection["seed"]) == {0, 1, 2}
    assert set(confirmation["seed"]) == {*range(3, 3 + pairs)}
    for method, own in selection.groupby("method"):
        first = own[own["seed"] == 0].set_index(keys)["validation"]
        means = own.groupby(keys)["validation"].agg(["mean", "size"])
        finalists = means[means["size"] == 3]
        assert len(finalists) == min(3, len(first))
        assert set(means["size"]) <= {1, 3}
        left_out = first.drop(finalists.index)
        assert left_out.empty or left_out.max() <= first[finalists.index].min()
        ((selected, group),) = confirmation[confirmation["method"] == method].groupby(keys)
        assert len(group) == pairs
        assert finalists.loc[selected, "mean"] == pytest.approx(finalists["mean"].max(), rel=1e-6)
    return confirmation.pivot(index="seed", columns="method", values="test")


def flip_signs(differences):
    """The share of all flips of signs whose mean is as far from zero."""
    flips = np.array([*product([1, -1], repeat=len(differences))]) @ differences
    return float((abs(flips) >= abs(differences.sum()) - 1e-9).mean())


@pytest.mark.long
def test_pictures_of_a_whole_comparison():
    flags = ["--compare.sweep=model.init_args.lr=0.3,0.03 data.init_args.batch_size=20,40", "--compare.confirm=6"]
    assert compare("--compare.methods=none,znorm(min_ndim=2)", *flags, "--trainer.max_epochs=1") == 0
    summary = Path("out/summary.md").read_text()
    source = Path("out/report.html").read_text()
    page = Page(source)
    for name in ("differences", "sweep", "sweep-2", "curves", "losses"):
        picture = Path("out", f"{name}.svg").read_text()
        root = ElementTree.fromstring(picture)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert f"]({name}.svg)" in summary
    assert source.count("<svg") == 5
    assert all(load.startswith("data:") for load in page.loads)
    assert "znorm(min_ndim=2)" in page.text


def stamps(folder="out"):
    return {path: path.stat().st_mtime_ns for path in Path(folder).glob("runs/*/result.json")}


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


@pytest.mark.long
def test_a_run_is_what_fit_and_test_make_of_it():
    methods = parse_methods("none,znorm(min_ndim=2)")
    for method in ("none", "znorm(min_ndim=2)"):
        assert compare(f"--compare.methods={method}", "--compare.confirm=[3]", f"--compare.out={method}") == 0
    runs = pd.concat([pd.read_csv(f"{method}/runs.csv") for method in ("none", "znorm(min_ndim=2)")])
    runs = runs.set_index("method")
    assert runs["seed"].tolist() == [3, 3]
    recipe = ConfiguredRecipe(yaml.safe_load(Path("none/config.yaml").read_text()), "lightning.pytorch")
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
    flags += ["--trainer.max_steps=2", "--trainer.accelerator=cpu", "--compare.methods=none", "--compare.confirm=1"]
    flags += ["--compare.monitor=validation_step.x", "--compare.mode=min", "--compare.test_monitor=test_step.y"]
    main(["compare", *flags])
    assert pd.read_csv("comparison/runs.csv")["status"].tolist() == ["finished"]
    summary = Path("comparison/summary.md").read_text()
    assert f"lightning-znorm compare --config={Path('comparison/config.yaml').absolute()} --package=" in summary


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
