"""The map: its commands, what it concludes from runs, and the published tables, page and picture."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from examples.collection import RATE, collect
from examples.map import picture, run
from examples.map.analysis import CHANCE, analyze
from examples.map.data import METHODS, PLACE, TEST_IMAGES, read_confirmation, read_trials
from examples.map.page import count_reached, render
from lightning_znorm.compare.command import make_parser
from lightning_znorm.compare.configuration import clean_configuration, flatten
from lightning_znorm.compare.question.arguments import parse_question
from tests import warm

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT / "docs" / "data" / "map"
ALL = [
    run.Place(network, depth, optimizer)
    for depth in run.DEPTHS
    for optimizer in run.OPTIMIZERS
    for network in run.NETWORKS
]


@pytest.fixture
def parse():

    def parsed(place):
        cli = make_parser("lightning.pytorch")(args=run.make_flags(place, Path("out")), run=False)
        configuration, chosen = clean_configuration(cli), cli.config.compare
        names = ("methods", "sweep", "monitor", "width", "vary", "baseline")
        draft = parse_question(**{name: chosen[name] for name in names}, configured=flatten(configuration))
        return configuration["model"]["init_args"], chosen, draft

    return parsed


@pytest.mark.parametrize("place", ALL[::7], ids=str)
def test_commands(parse, place):
    model, chosen, draft = parse(place)
    assert model["depth"] == place.depth
    assert model["has_skips"] == place.network.startswith("residual")
    assert model["init"] == ("default" if place.network == "default" else "he")
    assert model["norm"] == {"layernorm": "layer", "residual-layernorm": "layer", "batchnorm": "batch"}.get(
        place.network
    )
    arguments = model["optimizer"]["init_args"]
    assert model["optimizer"]["class_path"] == f"torch.optim.{'SGD' if place.optimizer == 'sgd' else 'Adam'}"
    assert arguments.get("momentum") == (0.9 if place.optimizer == "sgd" else None)
    assert arguments.get("eps") == {"adam": 1e-8, "adam-eps": 1e-30}.get(place.optimizer)
    assert [method.label for method in draft.methods] == METHODS
    assert chosen.vary == "data.init_args.seed"
    assert chosen.out == f"out/{place}"
    assert run.parse_place(str(place)) == place
    starts = {label: values.start for label, values in draft.sweep[RATE].items()}
    assert starts.keys() == {*METHODS}
    assert (len({*starts.values()}) > 1) == (place.optimizer == "sgd")


def make_runs(means, pairs=24, deviation=0.01, seed=0, place=("plain", 20, "sgd")):
    """Test accuracies of so many pairs, as whole numbers of images."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, deviation, (pairs, len(METHODS)))
    accuracy = np.clip(np.array([means[method] for method in METHODS]) + noise, 0, 1)
    table = pd.DataFrame(np.round(accuracy * TEST_IMAGES) / TEST_IMAGES, columns=METHODS)
    return table.assign(**dict(zip(PLACE, place, strict=True)), seed=range(pairs))


LEVEL = dict.fromkeys(METHODS, 0.9)


@pytest.mark.parametrize(
    ("means", "answer"),
    [
        (LEVEL | {"znorm": 0.95}, "better"),
        (LEVEL | {"znorm": 0.95, "scale": 0.95}, "undecided"),  # not better than every other
        (LEVEL | {"znorm": 0.85}, "worse"),
        (LEVEL | {"gc": 0.95}, "worse"),  # than one of them
        (LEVEL, "equivalent"),
        (dict.fromkeys(METHODS, CHANCE) | {"znorm": 0.2}, "nothing"),
        (dict.fromkeys(METHODS, CHANCE) | {"znorm(min_ndim=2)": 0.5}, "equivalent"),  # which has learned
    ],
)
def test_answers(means, answer):
    (row,) = analyze(make_runs(means)).to_dict("records")
    assert row["answer"] == answer
    others = {method: means[method] for method in ("none", "clip", "gc", "scale")}
    assert row["lead"] == pytest.approx(means["znorm"] - max(others.values()), abs=0.01)
    assert row["low"] < row["lead"] < row["high"]
    assert row["pairs"] == 24


def test_p_values_against_student():
    """Of normal differences, the flips of signs agree with Student's test."""
    runs = make_runs(LEVEL | {"znorm": 0.903, "clip": 0.904}, pairs=48)
    (row,) = analyze(runs).to_dict("records")
    differences = [runs["znorm"] - runs[other] for other in ("none", "clip", "gc", "scale")]
    above, below = (
        [stats.ttest_1samp(each, 0, alternative=side).pvalue for each in differences] for side in ("greater", "less")
    )
    near = [max(stats.ttest_1samp(each, -0.01, alternative="greater").pvalue,
                stats.ttest_1samp(each, 0.01, alternative="less").pvalue) for each in differences]  # fmt: skip
    assert row["p_better"] == pytest.approx(max(above), rel=0.15)
    assert row["p_worse"] == pytest.approx(min(1, 4 * min(below)), rel=0.3)
    assert row["p_equivalent"] == pytest.approx(max(near), rel=0.3, abs=1e-4)


def test_correction_over_the_places():
    """After Benjamini and Hochberg: the smallest p of the larger ones times the number over the rank."""
    runs = pd.concat(
        make_runs(LEVEL | {"znorm": 0.9 + gain}, seed=number, place=("plain", 20, optimizer))
        for number, (optimizer, gain) in enumerate(zip(run.OPTIMIZERS, (0.0, 0.006, 0.02), strict=True))
    )
    together = analyze(runs)["p_better"].tolist()
    alone = [analyze(own)["p_better"].item() for _, own in runs.groupby("optimizer", sort=False)]
    ranked = sorted(alone)
    expected = [min(3 / rank * p for rank, p in enumerate(ranked, 1) if p >= own) for own in alone]
    assert together == pytest.approx(expected)
    # a place in which nothing is learned is no test
    nothing = make_runs(dict.fromkeys(METHODS, CHANCE), place=("plain", 50, "sgd"))
    assert analyze(pd.concat([runs, nothing]))["p_better"].tolist()[:3] == pytest.approx(together)


def test_rate_of_wrong_answers():
    """In places without a difference, at most 5% are called better or worse."""
    answers = [analyze(make_runs(LEVEL, pairs=12, deviation=0.05, seed=seed))["answer"].item() for seed in range(200)]
    assert sum(answer in ("better", "worse") for answer in answers) <= stats.binom.ppf(0.999, 200, 0.05)


def test_pair_and_reach():
    runs = make_runs(LEVEL | {"none": 0.5}, pairs=12)
    (row,) = analyze(runs, "znorm", ["none"]).to_dict("records")
    assert (row["answer"], row["best"]) == ("better", "none")
    assert count_reached(runs) == 6
    assert count_reached(make_runs(LEVEL, pairs=12, deviation=0.2)) == 0


def test_published_page():
    page = (ROOT / "docs" / "map.md").read_text()
    assert page == render(read_confirmation(PUBLISHED), read_trials(PUBLISHED)), "run `python -m examples.map.page`"


def test_published_runs_are_whole():
    confirmation, trials = read_confirmation(PUBLISHED), read_trials(PUBLISHED)
    pairs = confirmation.groupby(PLACE).size()
    assert pairs.between(12, 48).all()
    assert run.read_published(PUBLISHED) == {run.Place(*place) for place in pairs.index}
    assert run.read_published(PUBLISHED) <= {*ALL}
    tried = trials.groupby([*PLACE, "method"])
    assert (tried.size() == 9).all()
    assert (tried["selected"].sum() == 1).all()
    assert {*tried.size().index.droplevel("method")} == {*pairs.index}
    assert (tried["seeds"].sum() == 15).all() or (trials["validation"].isna()).any()


def test_picture():
    places = [("plain", 20, "sgd"), ("residual", 5, "adam"), ("default", 50, "sgd")]
    levels = (LEVEL, LEVEL | {"znorm": 0.2}, dict.fromkeys(METHODS, CHANCE))
    runs = pd.concat(make_runs(level, place=place) for level, place in zip(levels, places, strict=True))
    picture.draw(runs, Path("map.png"))
    assert Path("map.png").stat().st_size > 20_000
    assert picture.show(-0.0123, "worse") == "−1.2"
    assert picture.show(0.2, "better") == "+20"
    assert picture.show(0.001, "equivalent") == "+0.1 ="


def test_estimate():
    whole = run.estimate(ALL, Path("results"))
    assert whole == pytest.approx(18 * run.RUNS * sum(run.SECONDS.values()))
    folder = Path("results", str(ALL[0]))
    folder.mkdir(parents=True)
    pd.DataFrame({"seconds": [8 * run.SECONDS[20]] * run.RUNS}).to_csv(folder / "runs.csv", index=False)
    assert run.estimate(ALL, Path("results")) == pytest.approx(4 * (whole - run.RUNS * run.SECONDS[20]))


def test_without_time():
    done = warm.run("-m", "examples.map.run", "--minutes", "0.1", env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 130
    assert "54 comparisons" in done.stderr
    assert "Time is up before default-20-sgd" in done.stderr
    assert math.isfinite(run.estimate(ALL, Path("results")))


@pytest.mark.long
def test_a_comparison_of_the_map():
    quick = ["--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1", "--compare.trials=1"]
    quick += ["--compare.width=null", "--compare.confirm=8"]
    where = ["--networks", "plain", "--depths", "5", "--optimizers", "adam", "--out", "results"]
    done = warm.run("-m", "examples.map.run", *where, *quick, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    confirmation, trials = collect(Path("results/plain-5-adam"))
    assert len(confirmation) == 8
    assert trials["selected"].tolist() == [1] * 6
