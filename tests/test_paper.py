"""The paper's experiments as a user starts them, on a few images."""

import argparse
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from examples.collection import RATE
from examples.paper import run as paper
from lightning_znorm.compare.command import make_parser
from lightning_znorm.compare.configuration import clean_configuration
from lightning_znorm.compare.question.arguments import parse_question
from tests import warm

ROOT = Path(__file__).parents[1]


@pytest.fixture
def data():
    """Eight images per class of each tree, six patients."""
    rng = np.random.default_rng(0)
    for tree, splits, classes, side in (
        ("cifar10-jpeg", ("train", "test"), [f"c{number}" for number in range(10)], 32),
        ("pcam-12k", ("train", "valid", "test"), ["0", "1"], 96),
    ):
        for split in splits:
            for name in classes:
                folder = Path("data", tree, split, name)
                folder.mkdir(parents=True)
                for number in range(8):
                    pixels = rng.integers(256, size=(side, side, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / f"{number}.jpg")
    for number in range(10):
        folder = Path("data", "kaggle_3m", f"TCGA_AB_{number:04d}_19990101")
        folder.mkdir(parents=True)
        for slice_ in (1, 2):
            pixels = rng.integers(256, size=(64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{folder.name}_{slice_}.tif")
            Image.fromarray((pixels[:, :, 0] > 200).astype(np.uint8) * 255).save(
                folder / f"{folder.name}_{slice_}_mask.tif"
            )


def run(*flags):
    return start("run", *flags)


def start(script, *flags):
    return warm.run("-m", f"examples.paper.{script}", *flags, env={"PYTHONPATH": str(ROOT)})


QUICK = ["--trainer.max_steps=2", "--trainer.accelerator=cpu", "--compare.confirm=1", "--compare.methods=znorm"]
QUICK += ["--compare.sweep=model.init_args.optimizer.init_args.lr=1e-3"]


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("experiment", "network", "metrics"),
    [
        ("cifar10", "resnet20", ["test_acc"]),
        ("pcam", "resnet18", ["test_acc", "test_f1", "test_precision", "test_recall", "test_auroc"]),
        ("lgg", "resnet34", ["test_dice", "test_iou", "test_sensitivity", "test_specificity"]),
        ("depth", "plain20", ["test_acc"]),
    ],
)
def test_small_preset(data, experiment, network, metrics):
    done = run(experiment, "--optimizers", "sgd", *QUICK)
    assert done.returncode == 0, done.stderr
    out = Path("results/paper/small")
    frame = pd.read_csv(out / f"{experiment}-{network}-sgd" / "runs.csv")
    assert frame["status"].tolist() == ["finished"]
    assert frame[metrics].notna().all(axis=None)
    if experiment == "lgg":  # what is done is not done again
        command = run(experiment, "--optimizers", "sgd", *QUICK, "--list").stdout.partition(": ")[2]
        again = warm.run(*shlex.split(command), env={"PYTHONPATH": str(ROOT)})
        assert again.returncode == 0, again.stderr
        assert "Trying" not in again.stderr


@pytest.mark.parametrize(
    ("preset", "has_trees"),
    [
        ("full", False),
        ("small", True),
        ("short", True),
        *(pytest.param(*p, marks=pytest.mark.long) for p in (("full", True), ("small", False))),
    ],
)
def test_every_command_is_one_that_compare_takes(preset, has_trees):
    if has_trees:
        for tree in ("cifar10-jpeg", "pcam-12k"):
            Path("data", tree).mkdir(parents=True)
    arguments = argparse.Namespace(
        experiments=list(paper.NETWORKS),
        preset=preset,
        networks=None,
        optimizers=["adam", "sgd"],
        data="data",
        out="results/paper",
    )
    chosen = list(paper.choose(arguments))
    names = [str(comparison) for comparison in chosen]
    assert len(set(names)) == len(names)
    if preset == "full":
        assert {"cifar10-resnet110-adam", "cifar10-densenet40-sgd", "pcam-densenet121-adam", "lgg-resnet34-sgd"} <= {
            *names
        }
        assert {f"depth-{kind}{depth}-sgd" for kind in ("plain", "resnet") for depth in (20, 56, 110)} <= {*names}
    if preset == "short":
        assert names == [f"{name}-{optimizer}" for name in ("cifar10-resnet20", "pcam-resnet18", "lgg-resnet34")
                         for optimizer in ("adam", "sgd")]  # fmt: skip
    for comparison in chosen[::5] if preset == "full" else chosen[::2]:
        cli = make_parser("lightning.pytorch")(args=paper.make_flags(comparison, arguments), run=False)
        model, loaded = (clean_configuration(cli)[part]["init_args"] for part in ("model", "data"))
        optimizer = model["optimizer"]
        assert optimizer["class_path"] == {"adam": "torch.optim.Adam", "sgd": "torch.optim.SGD"}[comparison.optimizer]
        assert optimizer["init_args"].get("momentum") == {"adam": None, "sgd": 0.9}[comparison.optimizer]
        assert model["lr_scheduler"]["class_path"] == "lightning_znorm.vision.CosineAnnealing"
        assert loaded["root"].startswith("data")
        methods = cli.config.compare.methods.split(",")
        if preset == "short":
            assert len(methods) == (6 if comparison.experiment == "cifar10" else 2)
            assert (cli.config.compare.confirm, cli.config.trainer.max_steps) == (12, 500)
            draft = parse_question(methods, cli.config.compare.sweep, cli.config.compare.monitor)
            assert draft.sweep[RATE].keys() == {*methods}
        else:
            assert len(methods) == 5
            assert cli.config.compare.confirm is None
        assert str(comparison) in cli.config.compare.out
    arguments.optimizers = None
    adam = {name for name in names if name.endswith("-adam")}
    assert {str(comparison) for comparison in paper.choose(arguments)} == (adam if preset == "small" else {*names})


def test_unknown_experiment():
    done = run("imagenet")
    assert done.returncode == 2
    assert "no experiment 'imagenet', only cifar10, pcam, lgg, depth" in done.stderr


def test_network_of_another_experiment():
    done = run("lgg", "--networks", "resnet20")
    assert done.returncode == 2
    assert "none of lgg has a network resnet20" in done.stderr


@pytest.mark.parametrize(("script", "table"), [("rates", "runs.csv"), ("overview", "summary.csv")])
def test_comparisons_of_one_name(script, table):
    folders = [Path("results", preset, "lgg-resnet34-adam") for preset in ("small", "full")]
    done = start(script, *folders)
    assert done.returncode == 2
    assert "different names" in done.stderr


def test_without_time(data):
    done = run("cifar10", "--minutes", "0.1")
    assert done.returncode == 130
    assert "Time is up before cifar10-resnet20-adam" in done.stderr


@pytest.mark.slow
def test_cosine():
    done = start("cosine", "--steps=3")
    assert done.returncode == 0, done.stderr
    frame = pd.read_csv("results/cosine/cosine.csv")
    assert set(frame["parameters"]) == {
        "convolutions", "linear layer", "BatchNorm and biases", "biases before BatchNorm"
    }  # fmt: skip
    assert frame["median"].between(0.5, 1).all()
    assert Path("results/cosine/cosine.png").stat().st_size > 10_000


@pytest.mark.slow
def test_left_out():
    done = start("left_out", "--steps=4", "--seeds=1")
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if "0.0" in line]
    moved = [[float(cell) for cell in row[3:5]] for row in rows]
    plain, everywhere, left_out, frozen, remedied = (vectors for _, vectors in moved)
    assert frozen == 0
    assert 0 < left_out < 0.1 * min(plain, everywhere, remedied)
    assert all(matrices > 0 for matrices, _ in moved)


def test_rates_of_known_curves():
    rates = [0.0001, 0.001, 0.01, 0.1, 1.0]
    tie = 0.5 + 2e-8  # in float32, 0.5 and its neighbor
    curves = {
        "inside": [0.1, 0.31, 0.5, 0.31, 0.1],
        "half": [0.1, 0.2999, 0.5, 0.3, 0.1],  # exactly half of what is above guessing is enough
        "fails": [0.1, 0.1, 0.4, 0.3, None],
        "low": [0.3, 0.5, 0.1, 0.4, 0.1],  # 0.1 works, but not what is between it and the best one
        "high": [0.1, 0.1, 0.2, 0.4, 0.5],
        "both": [0.3, 0.4, 0.5, 0.4, 0.3],
        "gap": [0.1, None, 0.5, 0.4, 0.1],
        "tied": [0.1, 0.5, tie, 0.3, 0.1],
        "apart": [0.5, 0.3, 0.1, 0.3, tie],
        "slow": [0.1, 0.12, 0.12, 0.1, 0.1],
    }
    rows = [
        {
            "method": method,
            "model.init_args.optimizer.init_args.lr": rate,
            "seed": seed,
            "status": "finished",
            "validation": value,
        }
        for method, values in curves.items()
        for rate, value in zip(rates, values, strict=True)
        for seed in (0, 1)
        if (method, rate) != ("gap", 0.001)
    ]
    Path("results/one").mkdir(parents=True)
    pd.DataFrame(rows).to_csv("results/one/runs.csv", index=False)
    done = start("rates", "results/one", "--chance=0.1")
    assert done.returncode == 0, done.stderr
    table = pd.read_csv("results/rates/rates.csv")
    assert table[["method", "best rate", "lowest", "highest", "factor"]].to_numpy().tolist() == [
        ["inside", "0.01", "0.001", "0.1", "100"],
        ["half", "0.01", "0.01", "0.1", "10"],
        ["fails", "0.01", "0.01", "0.1", "10"],
        ["low", "0.001", "≤ 0.0001", "0.001", "≥ 10"],
        ["high", "1", "0.1", "≥ 1", "≥ 10"],
        ["both", "0.01", "≤ 0.0001", "≥ 1", "≥ 10000"],
        ["gap", "0.01", "0.01", "0.1", "10"],
        ["tied", "0.001, 0.01", "0.001", "0.1", "100"],
        ["apart", "0.0001", "≤ 0.0001", "0.001", "≥ 10"],
        ["apart", "1", "0.1", "≥ 1", "≥ 10"],
        ["slow", "–", "–", "–", "–"],
    ]
    assert table.set_index("method")["failed runs"].to_dict() == dict.fromkeys(curves, 0) | {"fails": 2}
    assert Path("results/rates/rates.png").stat().st_size > 10_000

    missing = start("rates", "results/two")
    assert missing.returncode == 2
    assert "results/two has no runs.csv" in missing.stderr


def test_overview():
    def row(method, **figures):
        empty = dict.fromkeys(["difference", "difference_low", "difference_high", "p_holm"])
        known = {"method": method, "setting": "lr=0.1", "test": 0.5, "test_low": 0.4, "test_high": 0.6}
        return known | empty | figures | {"stopped_early": 0, "test_f1": 0.25}

    compared = {"difference": -0.0123, "difference_low": -0.05, "difference_high": 0.02, "p_holm": 0.034}
    for name, rows in (("both", [row("none"), row("znorm", **compared)]), ("alone", [row("none")])):
        Path("results", name).mkdir(parents=True)
        pd.DataFrame(rows).to_csv(f"results/{name}/summary.csv", index=False)
    done = start("overview", "results/both", "results/alone")
    assert done.returncode == 0, done.stderr
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()]
    assert ["`znorm`", "lr=0.1", "0.500", "0.400 to 0.600", "−0.012", "−0.050 to +0.020", "0.034", "0.250"] in lines
    assert lines.count(["`none`", "lr=0.1", "0.500", "0.400 to 0.600", "", "", "", "0.250"]) == 2
    assert Path("results/overview.png").stat().st_size > 5_000

    missing = start("overview", "results/both", "results")
    assert missing.returncode == 2
    assert "results has no summary.csv" in missing.stderr


@pytest.mark.slow
def test_gradients(data):
    done = start("gradients", "--kinds=plain", "--depths", "20", "--steps=2")
    assert done.returncode == 0, done.stderr
    frame = pd.read_csv("results/gradients/gradients.csv")
    assert frame.groupby(["method", "step"])["layer"].agg(list).map(lambda layers: layers == [*range(1, 20)]).all()
    none, znorm = (frame[frame["method"] == method].reset_index() for method in ("none", "znorm"))
    assert np.allclose(none.loc[none["step"] == 0, "std"], znorm.loc[znorm["step"] == 0, "std"], rtol=1e-3)
    assert np.allclose(none["received_std"], none["std"], rtol=1e-3)
    assert np.allclose(znorm["received_std"], 1, rtol=1e-3)
    for picture in ("gradients", "plain20-none", "plain20-znorm"):
        assert Path(f"results/gradients/{picture}.png").stat().st_size > 10_000
