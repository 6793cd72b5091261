"""Which learning rates work: networks of 20 layers of the map, swept from where nothing is learned to where it ends.

Each method is trained with half decades from 1e-6 to 10, with one seed each and three for the best ones.

    python -m examples.map.rates
"""

import argparse
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from examples.map.run import NETWORKS, OPTIMIZERS, Place
from examples.map.run import make_flags as make_map_flags
from examples.map.transfer import SWEEP
from examples.series import add_series_arguments, run_series

DEPTH = 20
OUT = Path("results/rates")


def list_places(networks: list[str], optimizers: list[str]) -> Iterator[Place]:
    """Yield what is asked for."""
    for optimizer, network in product(optimizers, networks):
        yield Place(network, DEPTH, optimizer)


def make_flags(place: Place, out: Path) -> list[str]:
    """Return the options of `compare`."""
    return [*make_map_flags(place, out, SWEEP), "--compare.width=null", "--compare.confirm=8"]


def main() -> None:
    """Run one comparison after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--optimizers", nargs="+", choices=list(OPTIMIZERS), default=["sgd", "adam"])
    add_series_arguments(parser, OUT)
    arguments, rest = parser.parse_known_args()
    places = list_places(arguments.networks, arguments.optimizers)
    run_series({str(place): make_flags(place, arguments.out) + rest for place in places}, arguments)


if __name__ == "__main__":
    main()
