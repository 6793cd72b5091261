"""A whole comparison by the command: its stages, its figures and its pictures."""

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
from tests.compare.helpers import TINY, compare


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
