"""Which learning rate does Lightning's finder suggest with and without ZNorm?

`Tuner.lr_find` takes the Trainer's callbacks away while it searches; a `ZNorm` among them goes on working all the same.

Prints a table, and writes `suggestions.csv` and `curves.png`. About two minutes on 2 CPU cores.
"""

import argparse
import logging
import warnings
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.tuner.tuning import Tuner
from matplotlib import pyplot as plt

from lightning_znorm import ZNorm
from lightning_znorm.vision import Digits, ImageClassifier

SKIPPED = 10  # first steps, whose smoothed loss says little
COLORS = {"": "#6b7280", " + ZNorm": "#d9480f"}
OPTIMIZERS: dict[str, OptimizerCallable] = {"SGD": partial(torch.optim.SGD, momentum=0.9), "Adam": torch.optim.Adam}


def search(optimizer: str, with_znorm: bool, steps: int) -> tuple[float | None, pd.DataFrame]:
    """Return the suggested rate, and the smoothed training loss at each rate."""
    seed_everything(0, verbose=False)
    model = ImageClassifier("resnet18", in_channels=1, optimizer=OPTIMIZERS[optimizer])
    callbacks: list[Callback] = [ZNorm()] if with_znorm else []
    trainer = Trainer(
        accelerator="auto", devices=1, max_epochs=-1, logger=False, enable_model_summary=False, callbacks=callbacks
    )
    finder = Tuner(trainer).lr_find(
        model, datamodule=Digits(image_size=16), min_lr=1e-6, max_lr=10, num_training=steps, update_attr=False
    )
    assert finder is not None
    return finder.suggestion(skip_begin=min(SKIPPED, steps // 3)), pd.DataFrame(finder.results)


def main(argv: list[str] | None = None) -> None:
    """Search with both optimizers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/learning_rate_finder"), help="folder (%(default)s)")
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps of each search")
    options = parser.parse_args(argv)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    figure, axes = plt.subplots(1, len(OPTIMIZERS), figsize=(10, 3.8), layout="constrained", sharey=True)
    for axis, optimizer in zip(axes, OPTIMIZERS, strict=True):
        for with_znorm, color in zip((False, True), COLORS.values(), strict=True):
            method = f"{optimizer} + ZNorm" if with_znorm else optimizer
            rate, curve = search(optimizer, with_znorm, options.steps)
            lowest = curve.iloc[min(SKIPPED, options.steps // 3) :].sort_values("loss")["lr"].iloc[0]
            rows.append({"method": method, "suggested rate": rate, "rate of the lowest loss": lowest})
            axis.plot(curve["lr"], curve["loss"], color=color, label=method)
            if rate is not None:
                axis.axvline(rate, color=color, linestyle=":", linewidth=1.2)
        axis.set(xscale="log", xlabel="learning rate", title=f"{optimizer}: dotted lines are the suggestions")
        axis.set_ylim(0, 5)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)
    axes[0].set_ylabel("training loss, smoothed")
    figure.savefig(options.out / "curves.png", dpi=130)
    plt.close(figure)
    table = pd.DataFrame(rows)
    table.to_csv(options.out / "suggestions.csv", index=False)
    print(table.to_string(index=False, float_format=lambda value: f"{value:.2g}"))


if __name__ == "__main__":
    main()
