"""The map: six kinds of network at three depths, with three optimizers, as `lightning-znorm compare` runs them.

Each comparison has six methods, each at its own best learning rate, and as many pairs as an interval of two points
needs. What is done is not done again, so that the same command goes on where the last one ended.

    python -m examples.map.run
    python -m examples.map.run --networks residual --depths 20 --optimizers sgd
"""

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from examples.collection import RATE
from examples.series import ADAM, OPTIMIZER, SGD, add_series_arguments, format_searches, run_series
from lightning_znorm.compare.display import format_time

CONFIG = Path(__file__).with_name("digits.yaml")
NETWORKS: dict[str, dict[str, Any]] = {  # arguments of `PerceptronClassifier`
    "default": {"init": "default"},
    "plain": {},
    "layernorm": {"norm": "layer"},
    "batchnorm": {"norm": "batch"},
    "residual": {"has_skips": True},
    "residual-layernorm": {"has_skips": True, "norm": "layer"},
}
DEPTHS = (20, 5, 50)
FUSED = f"{OPTIMIZER}.init_args.fused=true"
OPTIMIZERS = {
    "sgd": [*SGD, FUSED],
    "adam": [*ADAM, FUSED],
    "adam-eps": [*ADAM, f"{OPTIMIZER}.init_args.eps=1e-30", FUSED],
}
# where a search begins; it goes three decades in either direction
STARTS = {"none": 1e-2, "clip": 1e-1, "gc": 1e-2, "scale": 3e-4, "znorm": 3e-4, "znorm(min_ndim=2)": 3e-4}
ADAM_START = 1e-3
EXPLODING_START = 1e-4  # for raw gradients of residual networks without normalization
OUT = Path("results/map")
PUBLISHED = Path("docs/data/map")
RUNS = 300  # of a comparison, at most 378
SECONDS = {5: 0.6, 20: 1.1, 50: 2.0}  # of a run, at two side by side on two cores


@dataclass(frozen=True)
class Place:
    """A network, its depth and its optimizer: a comparison, and a cell for each method."""

    network: str
    depth: int
    optimizer: str

    def __str__(self) -> str:
        return f"{self.network}-{self.depth}-{self.optimizer}"


def parse_place(name: str) -> Place:
    """Return the place of a comparison's name.

    >>> parse_place("residual-layernorm-20-adam-eps")
    Place(network='residual-layernorm', depth=20, optimizer='adam-eps')

    """
    words = name.split("-")
    number = next(position for position, word in enumerate(words) if word.isdigit())
    return Place("-".join(words[:number]), int(words[number]), "-".join(words[number + 1 :]))


def list_places(arguments: argparse.Namespace) -> Iterator[Place]:
    """Yield what is asked for."""
    for depth in arguments.depths:
        for optimizer in arguments.optimizers:
            for network in arguments.networks:
                yield Place(network, depth, optimizer)


def read_published(folder: Path = PUBLISHED) -> set[Place]:
    """Return the places of the published tables."""
    return {parse_place(name) for name in pd.read_csv(folder / "confirmation.csv")["comparison"].unique()}


def make_flags(place: Place, out: Path, sweep: str | None = None) -> list[str]:
    """Return the options of `compare`, which search the rates if ``sweep`` does not list them."""
    if sweep is None:
        explodes = place.network == "residual" and place.depth > 5
        sweep = format_searches(find_starts(place.optimizer, explodes=explodes))
    return [
        *make_network_flags(place.network, place.depth),
        *OPTIMIZERS[place.optimizer],
        f"--compare.sweep={RATE}={sweep}",
        f"--compare.out={out / str(place)}",
    ]


def make_network_flags(network: str, depth: int, **arguments: Any) -> list[str]:
    """Return the configuration, and the options by which it gets a network of a depth."""
    arguments = {**NETWORKS[network], "depth": depth, **arguments}
    flags = [f"--model.init_args.{name}={str(value).lower()}" for name, value in arguments.items()]
    return [f"--config={os.path.relpath(CONFIG)}", *flags]


def find_starts(optimizer: str, *, explodes: bool = False) -> dict[str, float]:
    """Return where the search of each method begins, also where raw gradients explode."""
    if optimizer != "sgd":
        return dict.fromkeys(STARTS, ADAM_START)
    return STARTS | (dict.fromkeys(("none", "gc"), EXPLODING_START) if explodes else {})


def estimate(places: list[Place], out: Path) -> float:
    """Return the seconds that are left, from those of comparisons that are done."""
    measured: dict[int, list[float]] = {}
    left = []
    for place in places:
        runs = out / str(place) / "runs.csv"
        if runs.is_file():
            measured.setdefault(place.depth, []).append(pd.read_csv(runs)["seconds"].sum() / 2)
        else:
            left.append(place.depth)
    ratios = [sum(found) / len(found) / (RUNS * SECONDS[depth]) for depth, found in measured.items()]
    ratio = sum(ratios) / len(ratios) if ratios else 1.0
    return sum(RUNS * SECONDS[depth] * ratio for depth in left)


def main() -> None:
    """Run one comparison after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--depths", nargs="+", type=int, choices=DEPTHS, default=list(DEPTHS))
    parser.add_argument("--optimizers", nargs="+", choices=list(OPTIMIZERS), default=list(OPTIMIZERS))
    parser.add_argument("--missing", action="store_true", help=f"leave out the comparisons that are in {PUBLISHED}")
    add_series_arguments(parser, OUT)
    arguments, rest = parser.parse_known_args()
    published = read_published() if arguments.missing else set()
    places = [place for place in list_places(arguments) if place not in published]
    if not arguments.list:
        left = format_time(estimate(places, arguments.out))
        print(f"{len(places)} comparisons of some {RUNS} runs, about {left} to go on two cores.", file=sys.stderr)
    run_series({str(place): make_flags(place, arguments.out) + rest for place in places}, arguments)


if __name__ == "__main__":
    main()
