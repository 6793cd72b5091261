"""The paper's experiments: each network and optimizer on each data set, as `lightning-znorm compare` runs them.

The data are looked for in a folder: `cifar10-jpeg` and `pcam-12k` (trees of images) if they are there, otherwise the
original sets, which are downloaded into it; and `kaggle_3m`, which has to be there. What is done is not done again, so
that the same command goes on where the last one ended.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.collection import RATE
from examples.map.run import STARTS, find_starts
from examples.series import ADAM, SGD, add_series_arguments, format_searches, run_series

HERE = Path(__file__).parent
NETWORKS = {
    "cifar10": {
        "resnet20": "pytorchcv:resnet20_cifar10",
        "resnet56": "pytorchcv:resnet56_cifar10",
        "resnet110": "pytorchcv:resnet110_cifar10",
        "densenet40": "pytorchcv:densenet40_k12_cifar10",
    },
    "pcam": {"resnet18": "resnet18", "densenet121": "densenet121"},
    "lgg": {"resnet34": "resnet34"},
    "depth": {f"{kind}{depth}": f"cifar_{kind}{depth}" for depth in (20, 56, 110) for kind in ("plain", "resnet")},
}
SMALL_NETWORKS = {
    "cifar10": ["resnet20"],
    "pcam": ["resnet18"],
    "lgg": ["resnet34"],
    "depth": ["plain20", "resnet20", "plain56", "resnet56"],
}
# under SGD, ZNorm wants a far smaller rate than the others: the values must hold the best of all
RATES = {"adam": "1e-4,3e-4,1e-3,3e-3,1e-2,3e-2", "sgd": "1e-4,3e-4,1e-3,3e-3,1e-2,3e-2,1e-1,3e-1"}
SMALL_RATES = {
    "cifar10": {"adam": "1e-3,3e-3,1e-2", "sgd": "1e-4,3e-4,1e-3,3e-2,1e-1,3e-1"},
    "pcam": {"adam": "3e-4,1e-3,3e-3", "sgd": "3e-4,1e-3,3e-3,1e-2,3e-2"},
    "lgg": {"adam": "1e-3,3e-3,1e-2,3e-2", "sgd": "1e-3,1e-2,3e-2,1e-1"},
}
# from where nothing is learned to where nothing is learned; ZNorm's working range begins below 1e-4
DEPTH_RATES = {
    "adam": "3e-4,1e-3,3e-3,1e-2,3e-2,1e-1,3e-1",
    "sgd": "1e-6,3e-6,1e-5,3e-5,1e-4,3e-4,1e-3,3e-3,1e-2,3e-2,1e-1,3e-1,1,3",
}
OPTIMIZERS = {"adam": ADAM, "sgd": SGD}
TREES = {
    "cifar10": ("cifar10-jpeg", "flip_and_crop", [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
    "pcam": ("pcam-12k", "quarter_turns", [0.7008, 0.5384, 0.6916], [0.2350, 0.2774, 0.2129]),
}
# about half an hour for each experiment and optimizer on two CPU cores
SMALL = {
    "cifar10": ["--trainer.max_steps=120", "--data.init_args.batch_size=64"],
    "pcam": ["--trainer.max_steps=100", "--data.init_args.batch_size=32"],
    "lgg": [
        "--trainer.max_steps=80",
        "--data.init_args.batch_size=8",
        "--data.init_args.image_size=64",
        "--data.init_args.only_tumor=true",
    ],
    "depth": ["--trainer.max_steps=100", "--data.init_args.batch_size=32"],
}
# the data are validated once, at the end
SHORT_TRAINING = ["--trainer.max_epochs=-1", "--trainer.precision=32-true", "--trainer.check_val_every_n_epoch=1000"]
# 500 steps, and as many pairs as decide; with LGG, each pair has test patients of its own
SHORT = {
    "cifar10": ["--data.init_args.batch_size=32"],
    "pcam": ["--data.init_args.batch_size=32"],
    "lgg": [
        "--data.init_args.batch_size=8",
        "--data.init_args.image_size=64",
        "--data.init_args.only_tumor=true",
        "--compare.vary=data.init_args.seed",
    ],
}
SHORT_METHODS = {"cifar10": list(STARTS), "pcam": ["none", "znorm"], "lgg": ["none", "znorm"]}
# more networks and rates, so fewer epochs
FULL = {"depth": ["--trainer.max_epochs=10"]}
SMALL_TREES = {
    "cifar10": ["--data.init_args.eval_per_class=200"],
    "pcam": ["--data.init_args.eval_per_class=400", "--data.init_args.image_size=48"],
    "depth": ["--data.init_args.eval_per_class=50", "--data.init_args.image_size=16"],
}


@dataclass(frozen=True)
class Comparison:
    """One call of `lightning-znorm compare`."""

    experiment: str
    network: str
    optimizer: str

    def __str__(self) -> str:
        return f"{self.experiment}-{self.network}-{self.optimizer}"


def choose(arguments: argparse.Namespace) -> Iterator[Comparison]:
    """Yield what is asked for."""
    for experiment in arguments.experiments:
        if arguments.preset == "short" and experiment not in SHORT:
            continue
        default = list(NETWORKS[experiment]) if arguments.preset == "full" else SMALL_NETWORKS[experiment]
        for network in NETWORKS[experiment]:
            if network in (arguments.networks or default):
                for optimizer in arguments.optimizers or (["adam"] if arguments.preset == "small" else OPTIMIZERS):
                    yield Comparison(experiment, network, optimizer)


def make_flags(comparison: Comparison, arguments: argparse.Namespace) -> list[str]:
    """Return the options of `compare`."""
    experiment = "cifar10" if comparison.experiment == "depth" else comparison.experiment
    backbone = "encoder" if experiment == "lgg" else "backbone"
    flags = [
        f"--config={HERE / experiment}.yaml",
        f"--model.init_args.{backbone}={NETWORKS[comparison.experiment][comparison.network]}",
        *OPTIMIZERS[comparison.optimizer],
        *make_data_flags(experiment, Path(arguments.data), Path(arguments.out)),
        f"--compare.sweep={RATE}={find_rates(comparison, arguments.preset)}",
        f"--compare.out={Path(arguments.out) / arguments.preset / str(comparison)}",
    ]
    if arguments.preset == "full":
        return flags + FULL.get(comparison.experiment, [])
    if arguments.preset == "short":
        flags += ["--trainer.max_steps=500", "--compare.confirm=12", *SHORT[experiment]]
        flags += [f"--compare.methods={','.join(SHORT_METHODS[experiment])}"]
    else:
        flags += SMALL[comparison.experiment]
    flags += SHORT_TRAINING
    return flags + (SMALL_TREES[comparison.experiment] if is_tree(experiment, Path(arguments.data)) else [])


def find_rates(comparison: Comparison, preset: str) -> str:
    """Return the learning rates to choose from."""
    if preset == "short":
        starts = find_starts(comparison.optimizer)
        return format_searches({method: starts[method] for method in SHORT_METHODS[comparison.experiment]})
    if comparison.experiment == "depth":
        return DEPTH_RATES[comparison.optimizer]
    return (SMALL_RATES[comparison.experiment] if preset == "small" else RATES)[comparison.optimizer]


def is_tree(experiment: str, folder: Path) -> bool:
    """Tell whether the data are there as a tree of images."""
    return experiment in TREES and (folder / TREES[experiment][0]).is_dir()


def make_data_flags(experiment: str, folder: Path, out: Path) -> list[str]:
    """Return where the data are, and in which form."""
    if experiment == "lgg":
        return [f"--data.init_args.root={folder / 'kaggle_3m'}"]
    if not is_tree(experiment, folder):
        return [f"--data.init_args.root={folder}"]
    tree, augment, mean, std = TREES[experiment]
    init_args: dict[str, Any] = {"root": str(folder / tree), "augment": augment, "mean": mean, "std": std}
    init_args |= {"on_device": True, "cache": str(out / "cache")}
    data = {"class_path": "lightning_znorm.vision.ImageFolder", "init_args": init_args}
    return [f"--data={json.dumps(data)}"]


def main() -> None:
    """Run one comparison after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = ", ".join(NETWORKS)
    parser.add_argument("experiments", nargs="*", metavar="experiment", help=f"{known}; all by default")
    parser.add_argument("--preset", choices=("small", "short", "full"), default="small")
    networks = sorted({name for names in NETWORKS.values() for name in names})
    parser.add_argument("--networks", nargs="+", choices=networks)
    optimizers = "%(choices)s; by default Adam for the small preset, both for the others"
    parser.add_argument("--optimizers", nargs="+", choices=list(OPTIMIZERS), help=optimizers)
    parser.add_argument("--data", default="data", help="folder of the data sets (%(default)s)")
    add_series_arguments(parser, Path("results/paper"))
    arguments, rest = parser.parse_known_args()
    arguments.experiments = arguments.experiments or list(NETWORKS)
    for experiment in arguments.experiments:
        if experiment not in NETWORKS:
            parser.error(f"there is no experiment {experiment!r}, only {known}")
    if not (comparisons := list(choose(arguments))):
        parser.error(f"none of {', '.join(arguments.experiments)} has a network {' or '.join(arguments.networks)}")
    run_series({str(comparison): make_flags(comparison, arguments) + rest for comparison in comparisons}, arguments)


if __name__ == "__main__":
    main()
