"""Does the best learning rate transfer? Residual networks of six depths and of six widths, with SGD.

Each comparison sweeps half decades from where nothing is learned to where nothing is learned, with `none`, `clip`,
`scale` and `znorm`, and confirms the best rate of each method with twelve pairs.

    python -m examples.map.transfer
"""

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from examples.map.run import CONFIG, NETWORKS, OPTIMIZERS
from examples.series import add_series_arguments, run_series

KINDS = ("residual-layernorm", "plain")
DEPTHS = (2, 4, 8, 16, 32, 64)
WIDTHS = (16, 32, 64, 128, 256, 512)
BASE = {"depth": 8, "width": 64}
METHODS = "none,clip,scale,znorm"
RATES = [1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0]
OUT = Path("results/transfer")


@dataclass(frozen=True)
class Size:
    """The size of a network of a kind."""

    kind: str
    depth: int
    width: int

    def __str__(self) -> str:
        return f"{self.kind}-{self.depth}x{self.width}"


def list_sizes(kinds: list[str]) -> Iterator[Size]:
    """Yield the sizes, the base first."""
    for kind in kinds:
        base = Size(kind, **BASE)
        deeper = [Size(kind, depth, base.width) for depth in DEPTHS]
        wider = [Size(kind, base.depth, width) for width in WIDTHS]
        yield from dict.fromkeys([base, *deeper, *wider])


def make_flags(size: Size, out: Path) -> list[str]:
    """Return the options of `compare`."""
    rates = ",".join(f"{rate:g}" for rate in RATES)
    return [
        f"--config={os.path.relpath(CONFIG)}",
        *NETWORKS[size.kind],
        f"--model.init_args.depth={size.depth}",
        f"--model.init_args.width={size.width}",
        *OPTIMIZERS["sgd"],
        f"--compare.methods={METHODS}",
        f"--compare.sweep=model.init_args.optimizer.init_args.lr={rates}",
        "--compare.baseline=none",
        "--compare.width=null",
        "--compare.confirm=12",
        f"--compare.out={out / str(size)}",
    ]


def main() -> None:
    """Run one comparison after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS[:1]))
    add_series_arguments(parser, OUT)
    arguments, rest = parser.parse_known_args()
    sizes = list_sizes(arguments.kinds)
    run_series({str(size): make_flags(size, arguments.out) + rest for size in sizes}, arguments)


if __name__ == "__main__":
    main()
