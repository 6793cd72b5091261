"""Does the best learning rate transfer? Residual networks of six depths and of six widths, with SGD.

Each comparison sweeps half decades from where nothing is learned to where nothing is learned, with `none`, `clip`,
`scale` and `znorm`, and confirms the best rate of each method with twelve pairs. Then the same seeds are trained at the
rates that are best in the base, eight layers of 64: what they lose is the price of a rate that was not searched.

    python -m examples.map.transfer
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from examples.collection import RATE, collect
from examples.map.run import OPTIMIZERS, make_network_flags
from examples.series import add_series_arguments, run_series

KINDS = ("residual-layernorm", "plain")
DEPTHS = (2, 4, 8, 16, 32, 64)
WIDTHS = (16, 32, 64, 128, 256, 512)
BASE = {"depth": 8, "width": 64}
METHODS = ("none", "clip", "scale", "znorm")
RATES = [1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0]
SWEEP = ",".join(f"{rate:g}" for rate in RATES)
OUT = Path("results/transfer")
ENDING = "-transferred"


@dataclass(frozen=True)
class Size:
    """The size of a network of a kind."""

    kind: str
    depth: int
    width: int

    def __str__(self) -> str:
        return f"{self.kind}-{self.depth}x{self.width}"


def base_of(size: Size) -> Size:
    """Return the base of a size."""
    return Size(size.kind, **BASE)


def parse_size(name: str) -> Size:
    """Return the size of a comparison's name.

    >>> parse_size("residual-layernorm-8x64-transferred")
    Size(kind='residual-layernorm', depth=8, width=64)

    """
    kind, _, numbers = name.removesuffix(ENDING).rpartition("-")
    depth, width = numbers.split("x")
    return Size(kind, int(depth), int(width))


def list_sizes(kinds: list[str]) -> Iterator[Size]:
    """Yield the sizes, the base first."""
    for kind in kinds:
        base = Size(kind, **BASE)
        deeper = [Size(kind, depth, base.width) for depth in DEPTHS]
        wider = [Size(kind, base.depth, width) for width in WIDTHS]
        yield from dict.fromkeys([base, *deeper, *wider])


def make_flags(size: Size, out: Path, *, sweep: str, confirm: str = "12", ending: str = "") -> list[str]:
    """Return the options of `compare`."""
    return [
        *make_network_flags(size.kind, size.depth, width=size.width),
        *OPTIMIZERS["sgd"],
        f"--compare.methods={','.join(METHODS)}",
        f"--compare.sweep={RATE}={sweep}",
        "--compare.baseline=none",
        "--compare.width=null",
        f"--compare.confirm={confirm}",
        f"--compare.out={out / f'{size}{ending}'}",
    ]


def make_search_flags(size: Size, out: Path) -> list[str]:
    """Return the options by which the best rates of a size are searched."""
    return make_flags(size, out, sweep=SWEEP)


def make_transfer_flags(size: Size, out: Path) -> list[str]:
    """Return the options by which a size gets the best rates of the base, with the seeds of its own."""
    (_, base), (own, _) = (require_finished(out / str(of)) for of in (base_of(size), size))
    rates = base[base["selected"] == 1].set_index("method")["rate"]
    sweep = ", ".join(f"{method}: [{rate:g}]" for method, rate in rates.items())
    return make_flags(size, out, sweep=f"{{{sweep}}}", confirm=f"[{','.join(map(str, own['seed']))}]", ending=ENDING)


def require_finished(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return confirmation and trials of a comparison that has to be there."""
    found = collect(folder)
    if found is None:
        raise FileNotFoundError(f"{folder} has no finished comparison.")
    return found


def main() -> None:
    """Run one comparison after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS[:1]))
    add_series_arguments(parser, OUT)
    arguments, rest = parser.parse_known_args()
    sizes = [*list_sizes(arguments.kinds)]
    run_series({str(size): make_search_flags(size, arguments.out) + rest for size in sizes}, arguments)
    if arguments.list:
        print("\nThen the same seeds at the best rates of the base, in folders that end in", ENDING)
        return
    others = [size for size in sizes if size != base_of(size)]
    run_series({f"{size}{ENDING}": make_transfer_flags(size, arguments.out) + rest for size in others}, arguments)


if __name__ == "__main__":
    main()
