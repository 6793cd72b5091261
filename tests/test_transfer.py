"""Whether the best learning rate transfers: the commands, and the page that is written from their runs."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from examples.collection import RATE
from examples.map import transfer
from examples.map.transfer import ENDING, RATES, Size, parse_size
from examples.map.transfer_page import draw, render, tabulate
from lightning_znorm.compare.command import make_parser
from lightning_znorm.compare.configuration import clean_configuration, flatten
from lightning_znorm.compare.question.arguments import parse_question

METHODS = [*transfer.METHODS]
BEST = {"none": -1, "clip": -1, "scale": -3.5, "znorm": -3.5}  # decades, of the base
SEEDS = range(3, 15)


def parse(flags):
    cli = make_parser("lightning.pytorch")(args=flags, run=False)
    configuration, chosen = clean_configuration(cli), cli.config.compare
    names = ("methods", "sweep", "monitor", "confirm", "width", "vary", "baseline")
    draft = parse_question(**{name: chosen[name] for name in names}, configured=flatten(configuration))
    return configuration["model"]["init_args"], chosen, draft


def find_best(size, method):
    """The rate at which an imaginary network is best: that of `none` falls with the depth, that of `znorm` does not."""
    return BEST[method] - (np.log10(size.depth / 8) if method in ("none", "clip") else 0)


def measure(size, method, rate):
    return max(0.1, 0.97 - 0.05 * (np.log10(rate) - find_best(size, method)) ** 2)


def find_rate(size, method):
    return max(RATES, key=lambda rate: measure(size, method, rate))


def make_tables(sizes):
    confirmation, trials = [], []
    for size in sizes:
        for ending in ("", ENDING):
            rates = {method: find_rate(transfer.base_of(size) if ending else size, method) for method in METHODS}
            confirmation += [
                {"comparison": f"{size}{ending}", "seed": seed}
                | {method: measure(size, method, rate) + seed / 1000 for method, rate in rates.items()}
                for seed in SEEDS
            ]
        trials += [
            {"comparison": str(size), "method": method, "rate": rate, "validation": measure(size, method, rate)}
            | {"seeds": 1, "selected": int(rate == find_rate(size, method)), "diverged": None}
            for method in METHODS
            for rate in RATES
        ]
    return pd.DataFrame(confirmation), pd.DataFrame(trials)


@pytest.mark.parametrize("kind", transfer.KINDS)
def test_sizes(kind):
    sizes = list(transfer.list_sizes([kind]))
    assert sizes[0] == transfer.base_of(sizes[5]) == Size(kind, 8, 64)
    assert [size.depth for size in sizes if size.width == 64] == [8, 2, 4, 16, 32, 64]
    assert sorted(size.width for size in sizes if size.depth == 8) == [16, 32, 64, 128, 256, 512]
    assert len({*map(str, sizes)}) == len(sizes) == 11
    assert [parse_size(f"{size}{ENDING}") for size in sizes] == sizes


@pytest.mark.parametrize("size", [*transfer.list_sizes([*transfer.KINDS])][::5], ids=str)
def test_search(size):
    model, chosen, draft = parse(transfer.make_search_flags(size, Path("out")))
    assert (model["depth"], model["width"]) == (size.depth, size.width)
    assert model["has_skips"] == size.kind.startswith("residual")
    assert draft.sweep[RATE] == RATES
    assert chosen.out == f"out/{size}"


def test_rates_of_the_base():
    base, size = Size("plain", 8, 64), Size("plain", 64, 64)
    with pytest.raises(FileNotFoundError, match="plain-8x64 has no finished comparison"):
        transfer.make_transfer_flags(size, Path("results"))
    for of in (base, size):
        folder = Path("results", str(of))
        folder.mkdir(parents=True)
        rates = {method: find_rate(of, method) for method in METHODS}
        runs = [(method, rate, "selection", 0) for method in METHODS for rate in RATES]
        runs += [(method, rates[method], "confirmation", seed) for method in METHODS for seed in SEEDS]
        table = pd.DataFrame(runs, columns=["method", RATE, "stage", "seed"])
        table.assign(validation=0.5, test=0.5, status="finished").to_csv(folder / "runs.csv", index=False)
        pd.DataFrame({"method": METHODS, "answer": "worse"}).to_csv(folder / "summary.csv", index=False)
    model, chosen, draft = parse(transfer.make_transfer_flags(size, Path("results")))
    assert model["depth"] == 64
    assert draft.sweep[RATE] == {method: [find_rate(base, method)] for method in METHODS}
    assert draft.sweep[RATE]["none"] != [find_rate(size, "none")]
    assert chosen.confirm == [*SEEDS]
    assert chosen.out == "results/plain-64x64-transferred"


def test_table():
    sizes = [*transfer.list_sizes(["residual-layernorm"])]
    confirmation, trials = make_tables(sizes)
    table = tabulate(confirmation, trials)
    assert len(table) == 11 * 4
    assert [(size.depth, size.width) for size in table["size"][::4]][:7] == [
        (2, 64), (4, 64), (8, 64), (16, 64), (32, 64), (64, 64), (8, 16)
    ]  # fmt: skip
    for row in table.to_dict("records"):
        size, method = row["size"], row["method"]
        rate = find_rate(size, method)
        assert row["range"].best == rate
        assert row["range"].low < rate < row["range"].high
        lost = measure(size, method, rate) - measure(size, method, find_rate(sizes[0], method))
        assert row["loss"] == pytest.approx(lost)
        assert (row["loss_low"], row["loss_high"]) == pytest.approx((lost, lost), abs=1e-4)
    lost = table[table["method"] == "none"].set_index(table.loc[table["method"] == "none", "size"].map(str))["loss"]
    assert lost["residual-layernorm-64x64"] > 0.02 > lost["residual-layernorm-8x512"]


def test_page_and_picture():
    confirmation, trials = make_tables([*transfer.list_sizes(["residual-layernorm"])])
    rows = [line.split(" | ") for line in render(confirmation, trials).splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 44
    assert rows[8][2:4] == ["`none`", "0.1"]
    assert rows[8][-1] == "– |"
    assert rows[0][-1].startswith("1.")
    draw(trials, Path("transfer.png"))
    assert Path("transfer.png").stat().st_size > 30_000
