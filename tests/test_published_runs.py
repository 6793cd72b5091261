"""What of the published runs in docs/data/paper today's code makes again: initial weights, order and augmentation."""

import argparse
import hashlib
import json
import math
import re
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from lightning.pytorch import seed_everything

from examples.paper import run
from lightning_znorm.compare.command import make_parser
from lightning_znorm.compare.configuration import clean_configuration
from lightning_znorm.compare.question.arguments import parse_question
from lightning_znorm.compare.runs.hashes import hash_batch, hash_weights
from lightning_znorm.compare.runs.recipes import ConfiguredRecipe
from lightning_znorm.vision.data._images import ImageDataModule
from lightning_znorm.vision.data._splits import Split, Tensors
from tests.data_sets import find_data_set
from tests.published import RATE

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "paper.md").read_text()
RUNS = {path.stem.removesuffix("-small"): path for path in sorted((ROOT / "docs/data/paper").glob("*-small.csv"))}
ORDERS = json.loads((ROOT / "docs/data/paper/orders.json").read_text())
NOT_REPEATABLE = set(ORDERS["not_repeatable"])
FOLDERS = {"cifar10": "cifar10-jpeg", "pcam": "pcam-12k", "lgg": "kaggle_3m", "depth": "cifar10-jpeg"}
# of the training splits; classes, or none for masks
SAMPLES = {"cifar10": (45_000, 10), "pcam": (8_000, 2), "lgg": (974, None), "depth": (45_000, 10)}
NETWORKS = sorted({name.rpartition("-")[0] for name in RUNS})
FIRST = {min(name for name in RUNS if name.startswith(f"{folder}-")) for folder in FOLDERS}  # of each data set


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Make what a run of a published comparison trains, and on what, as `compare` does with the small preset."""
    monkeypatch.setattr(sys, "argv", sys.argv[:1])  # LightningCLI warns of what it finds there

    def made(name, data, seed=0):
        options = argparse.Namespace(preset="small", data=data, out=tmp_path / "out")
        flags = run.make_flags(run.Comparison(*name.split("-")), options)
        cli = make_parser("lightning.pytorch")(args=flags, run=False)
        configuration = clean_configuration(cli)
        chosen = cli.config.compare
        first, *_ = parse_question(chosen.methods, chosen.sweep, chosen.monitor).list_first_runs()
        recipe = ConfiguredRecipe(configuration, "lightning.pytorch")
        return recipe.make(replace(first, seed=seed), tmp_path, [], is_trial=False)

    return made


@pytest.fixture
def empty_trees(tmp_path):
    """A folder in which the trees of images are, so that the preset is the published one, without an image."""
    for folder in FOLDERS.values():
        (tmp_path / "data" / folder).mkdir(parents=True, exist_ok=True)
    return tmp_path / "data"


def hash_of_batches(data, seed):
    """What a run of less than an epoch records of its batches, in the length that the tables have."""
    seed_everything(seed, workers=True, verbose=False)
    digest, batches = hashlib.sha256(), iter(data.train_dataloader())
    for _ in range(2):
        hash_batch(next(batches), digest)
    return digest.hexdigest()[:16]


def published(name):
    """The weights and the batches of each seed of a published comparison."""
    return pd.read_csv(RUNS[name]).groupby("seed")[["weights_hash", "batches_hash"]].first()


@pytest.mark.parametrize("name", RUNS)
def test_all_methods_of_a_comparison_share_weights_and_batches(name):
    runs = pd.read_csv(RUNS[name])
    assert (runs.groupby("seed")[["weights_hash", "batches_hash"]].nunique() == 1).all(axis=None)
    assert runs["weights_hash"].nunique() == runs["batches_hash"].nunique() == runs["seed"].nunique() >= 2
    assert (runs.groupby(["seed", RATE])["method"].nunique() == 5).all()


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in FIRST else pytest.mark.long) for name in RUNS])
def test_published_runs_ended_within_their_first_epoch(make, empty_trees, name):
    """So that their hash is of two batches; and the epoch has as many batches as the preset makes of the data."""
    runs = pd.read_csv(RUNS[name])
    count, _ = SAMPLES[name.partition("-")[0]]
    (steps,), (epochs,) = runs["steps"].unique(), runs["epochs"].unique()
    batches = math.ceil(count / make(name, empty_trees).datamodule.batch_size)
    assert epochs == round(steps / batches, 4) < 1


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"),
    reason="PyTorch draws other random weights on a CPU without AVX2 than on those of the published runs",
)
@pytest.mark.parametrize("network", NETWORKS)
def test_initial_weights_are_those_of_the_published_runs(make, empty_trees, network):
    weights = hash_weights(make(f"{network}-sgd", empty_trees).model)[:16]
    assert {published(name)["weights_hash"][0] for name in RUNS if name.startswith(f"{network}-")} == {weights}


@pytest.mark.slow
@pytest.mark.parametrize("experiment", FOLDERS)
def test_batches_of_the_real_data(make, experiment):
    folder = find_data_set(FOLDERS[experiment]).parent
    names = [name for name in RUNS if name.startswith(f"{experiment}-")]
    data = make(names[0], folder).datamodule
    data.setup("fit")
    for name in names:
        expected = published(name)["batches_hash"].to_dict()
        is_same = {seed: hash_of_batches(data, seed) == batches for seed, batches in expected.items()}
        assert is_same == dict.fromkeys(expected, name not in NOT_REPEATABLE), name


class StandIn(ImageDataModule):
    """As many samples as a data set has, of a few pixels that are different for each, dealt out as its preset does."""

    def __init__(self, real, experiment):
        assert real.on_device
        super().__init__(
            batch_size=real.batch_size,
            augmentation=real.augmentation,
            num_workers=0,
            on_device=True,
            seed=real.seed,
        )
        self.count, self.classes = SAMPLES[experiment]

    def load(self, name):
        side = 4 if self.classes is None else 8
        numbers = torch.arange(self.count * 3 * side**2).view(self.count, 3, side, side)
        # a prime; no pixel of the rotated images is so near to the middle of two values that rounding could differ
        images = (numbers * 15_485_863 >> 8 & 255).to(torch.uint8)
        if self.classes is None:
            means = images.float().mean(dim=(2, 3)).round()  # of each image
            return Split(Tensors(images, (images[:, :1] > 127).to(torch.uint8)), means, torch.full_like(means, 64.0))
        mean = torch.tensor([[128.0, 127.0, 126.0]])
        return Split(Tensors(images, torch.arange(self.count) % self.classes), mean, torch.full_like(mean, 64.0))


@pytest.mark.parametrize("name", ORDERS["batches_hash"])
def test_order_and_augmentation_are_those_of_the_published_runs(make, empty_trees, name):
    data = StandIn(make(name, empty_trees).datamodule, name.partition("-")[0])
    data.setup("fit")
    expected, batches = ORDERS["batches_hash"][name], hash_of_batches(data, seed=0)
    assert batches == expected, (
        "The order or the augmentation of the training batches has changed, so that the published runs of"
        f" {', '.join(ORDERS['batches_hash'])} are no longer those that their commands make. If that is intended, run"
        " them again, or move them to `not_repeatable` in docs/data/paper/orders.json and say so in docs/paper.md."
    )


def test_every_published_comparison_is_repeatable_or_listed():
    assert not NOT_REPEATABLE & {*ORDERS["batches_hash"]}
    assert NOT_REPEATABLE | {*ORDERS["batches_hash"]} == {*RUNS}


def test_page_says_which_runs_cannot_be_repeated():
    sections = {section.splitlines()[0]: section for section in re.split(r"^## ", PAGE, flags=re.MULTILINE)}
    about = sections.pop("Which of these runs can be repeated exactly")
    other, same = about[about.index("The other") :], about[: about.index("The other")]
    assert {*re.findall(r"\(data/paper/(.+?)-small\.csv\)", other)} == NOT_REPEATABLE
    assert {*re.findall(r"\(data/paper/(.+?)-small\.csv\)", same)} == {*ORDERS["batches_hash"]}
    for title, section in sections.items():
        names = {*re.findall(r"\(data/paper/(.+?)-small\.csv\)", section)}
        is_marked = "(#which-of-these-runs-can-be-repeated-exactly)" in section
        assert is_marked == bool(names & NOT_REPEATABLE), title


def test_published_figures_of_the_rerun_on_the_page():
    runs = pd.read_csv(RUNS["depth-resnet20-sgd"]).set_index(["method", RATE, "seed"])["test"]
    for method, rate in (("none", 0.03), ("znorm", 0.0003)):
        pair = " and ".join(f"{runs[method, rate, seed]:.3f}" for seed in (0, 1))
        assert re.search(rf"`{method}` at {rate}[^;]*?\(published:\s{pair}\)", " ".join(PAGE.split())), pair
