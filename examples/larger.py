"""What larger models add to the map: convolutional networks on CIFAR-10, and a transformer on characters.

CIFAR-10 is read from a tree of images `cifar10-jpeg` in the folder of the data, scaled to 16 x 16 pixels, or downloaded
into it in its own size. Each comparison has six methods at their best rates and twelve pairs. What is done is not done
again, so that the same command goes on where the last one ended.

    python -m examples.larger cifar_resnet20_nonorm characters --optimizers sgd
"""

import argparse
import os
from itertools import product
from pathlib import Path

from examples.map.run import OPTIMIZERS, STARTS, find_starts
from examples.paper.run import SHORT_TRAINING, is_tree, make_data_flags
from examples.series import add_series_arguments, format_searches, run_series

HERE = Path(__file__).parent
CONVOLUTIONAL = [f"cifar_{kind}{ending}" for kind in ("plain20", "resnet20", "vgg11") for ending in ("", "_nonorm")]
CHARACTERS = {"characters": True, "characters_postnorm": False}  # whether LayerNorm comes before each part of a block
NETWORKS = [*CONVOLUTIONAL, *CHARACTERS]
STEPS = [
    *SHORT_TRAINING,
    "--trainer.max_steps=300",
    "--data.init_args.batch_size=32",
]
SMALL_IMAGES = ["--data.init_args.image_size=16", "--data.init_args.eval_per_class=200"]


def make_flags(network: str, optimizer: str, data: Path, out: Path) -> list[str]:
    """Return the options of `compare`."""
    return [
        *(make_character_flags(network) if network in CHARACTERS else make_image_flags(network, data, out)),
        *OPTIMIZERS[optimizer],
        f"--compare.methods={','.join(STARTS)}",
        "--compare.baseline=znorm",
        "--compare.confirm=12",
        f"--compare.sweep=lr={format_searches(find_starts(optimizer))}",
        f"--compare.out={out / f'{network}-{optimizer}'}",
    ]


def make_character_flags(network: str) -> list[str]:
    """Return the options of a transformer."""
    config = os.path.relpath(HERE / "characters.yaml")
    return [f"--config={config}", f"--model.init_args.norm_first={str(CHARACTERS[network]).lower()}"]


def make_image_flags(network: str, data: Path, out: Path) -> list[str]:
    """Return the options of a convolutional network."""
    config = os.path.relpath(HERE / "paper" / "cifar10.yaml")
    size = SMALL_IMAGES if is_tree("cifar10", data) else []
    where = make_data_flags("cifar10", data, out)
    return [f"--config={config}", f"--model.init_args.backbone={network}", *where, *STEPS, *size]


def main() -> None:
    """Run one comparison after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="network", help=f"{', '.join(NETWORKS)}; all by default")
    parser.add_argument("--optimizers", nargs="+", choices=list(OPTIMIZERS), default=["sgd", "adam"])
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data sets (%(default)s)")
    add_series_arguments(parser, Path("results/larger"))
    arguments, rest = parser.parse_known_args()
    networks = arguments.networks or NETWORKS
    for network in networks:
        if network not in NETWORKS:
            parser.error(f"there is no network {network!r}, only {', '.join(NETWORKS)}")
    flags = {
        f"{network}-{optimizer}": make_flags(network, optimizer, arguments.data, arguments.out) + rest
        for optimizer, network in product(arguments.optimizers, networks)
    }
    run_series(flags, arguments)


if __name__ == "__main__":
    main()
