"""Train a classifier and a brain-MRI segmenter with Adam and with Adam + ZNorm, and compare them: `make demo`.

The settings are those of `examples/digits.yaml` and `examples/brain_mri.yaml`, the same seed and the same batches for
both methods. Each run is what `lightning-znorm fit --config FILE [--znorm]` does, followed by `test`.
"""

import argparse
import logging
import sys
import time
import warnings
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
import torch
from lightning import pytorch as pl

from lightning_znorm.cli import ZNormCLI

mpl.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).parent
METHODS: dict[str, list[str]] = {"Adam": [], "Adam + ZNorm": ["--znorm"]}
COLORS = dict(zip(METHODS, ("#6b7280", "#d9480f"), strict=True))
QUIET = ["--trainer.logger=false", "--trainer.enable_checkpointing=false", "--trainer.enable_model_summary=false"]


@dataclass(frozen=True)
class Task:
    """One data set with its model: what to train, and which metric to look at."""

    title: str
    config: Path
    metric: str
    label: str


TASKS = {
    "digits": Task("Handwritten digits (ResNet-18)", HERE / "digits.yaml", "acc", "accuracy"),
    "brain_mri": Task("Brain MRI, grey and white matter (U-Net)", HERE / "brain_mri.yaml", "dice", "Dice"),
}


@dataclass
class Run:
    """What one training left behind."""

    task: Task
    method: str
    val: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    final: float = float("nan")
    seconds: float = float("nan")


class Curves(pl.Callback):
    """Keep the training loss and the validation metric of every epoch in a :class:`Run`."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the validation metric."""
        self.run.val.append(trainer.callback_metrics[f"val_{self.run.task.metric}"].item())

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the mean training loss."""
        self.run.loss.append(trainer.callback_metrics["train_loss"].item())


def train(run: Run, flags: list[str]) -> None:
    """Train and test as the command line would, and fill in the run as it goes."""
    cli = ZNormCLI(
        args=[f"--config={run.task.config}", *flags],
        run=False,
        save_config_callback=None,
        trainer_defaults={"callbacks": [Curves(run)]},
    )
    start = time.perf_counter()
    cli.trainer.fit(cli.model, cli.datamodule)
    run.seconds = time.perf_counter() - start
    (results,) = cli.trainer.test(cli.model, cli.datamodule, verbose=False)
    run.final = results[f"test_{run.task.metric}"]


def table(runs: list[Run]) -> pd.DataFrame:
    """One row per run: validation metric per epoch, the metric on the test split, seconds of training."""
    rows = []
    for run in runs:
        row: dict[str, Any] = {"data": run.task.title.partition(" (")[0].partition(",")[0], "method": run.method}
        row["metric"] = run.task.label
        row.update({f"epoch {i}": f"{value:.3f}" for i, value in enumerate(run.val, start=1)})
        rows.append(row | {"final (test)": f"{run.final:.3f}", "seconds": f"{run.seconds:.1f}"})
    frame = pd.DataFrame(rows)
    last = ["final (test)", "seconds"]
    return frame[[column for column in frame.columns if column not in last] + last].fillna("")


def plot(runs: list[Run], path: Path) -> None:
    """Draw validation metric and training loss per epoch, a column per task."""
    tasks = list(dict.fromkeys(run.task for run in runs))
    figure, axes = plt.subplots(2, len(tasks), figsize=(5.5 * len(tasks), 7), squeeze=False, layout="constrained")
    for column, task in enumerate(tasks):
        metric, loss = axes[:, column]
        for run in (run for run in runs if run.task == task):
            style: dict[str, Any] = {"label": run.method, "color": COLORS[run.method], "marker": "o", "markersize": 4}
            metric.plot(range(1, len(run.val) + 1), run.val, **style)
            loss.plot(range(1, len(run.loss) + 1), run.loss, **style)
        metric.set(title=task.title, ylabel=f"validation {task.label}")
        loss.set(xlabel="epoch", ylabel="training loss", yscale="log")
        for axis in (metric, loss):
            axis.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
            tidy(axis)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def tidy(axis: Any) -> None:
    """Give an axis its grid and legend, without the frame."""
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)


def report(runs: list[Run], out: Path) -> str:
    """Write `summary.md` and `curves.png`, and return the table as text."""
    out.mkdir(parents=True, exist_ok=True)
    frame = table(runs)
    plot(runs, out / "curves.png")
    threads = torch.get_num_threads()
    (out / "summary.md").write_text(
        f"# Adam with and without ZNorm\n\n{frame.to_markdown(index=False)}\n\n"
        "Validation metric after each epoch, the metric on the test split after the last one, and seconds of training."
        " Both methods had the same seed, initial weights, batches and learning rate, which was not tuned for either;"
        " one seed is too few to call a small difference real.\n\n"
        f"torch {torch.__version__}, lightning {version('lightning')}, {threads} CPU threads.\n\n"
        "![Learning curves](curves.png)\n"
    )
    return frame.to_string(index=False)


def shorten(epochs: int | None, batches: int | None) -> list[str]:
    """Flags for runs of other lengths than the YAML files say; None (of batches, also 0) changes nothing."""
    flags = [] if epochs is None else [f"--trainer.max_epochs={epochs}"]
    if batches:
        flags += [f"--trainer.limit_{split}_batches={batches}" for split in ("train", "val", "test")]
    return flags


def silence() -> None:
    """Leave the progress bars and the results alone on the screen."""
    sys.argv = sys.argv[:1]  # LightningCLI warns of what it finds there even when it is given arguments
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")


def main(argv: list[str] | None = None) -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/demo"), help="folder for the results (%(default)s)")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="which data sets")
    parser.add_argument("--epochs", type=int, help="epochs of each run, instead of what the YAML files say")
    parser.add_argument("--batches", type=int, help="stop each epoch after this many batches")
    options = parser.parse_args(argv)
    silence()
    flags = [*QUIET, *shorten(options.epochs, options.batches)]

    todo = [Run(TASKS[task], method) for task in options.tasks for method in METHODS]
    done: list[Run] = []
    text = ""
    for number, run in enumerate(todo, start=1):
        print(f"\n[{number}/{len(todo)}] {run.task.title}: {run.method}", flush=True)
        train(run, [*METHODS[run.method], *flags])
        done.append(run)
        text = report(done, options.out)  # after each run, so that an interrupted demo leaves what it has
    print(f"\n{text}\n\nCurves: {options.out / 'curves.png'}   Summary: {options.out / 'summary.md'}")
    print("One seed each: small differences mean nothing. ZNorm in your own Trainer:")
    print("    from lightning_znorm import ZNorm;  Trainer(..., callbacks=[ZNorm()])")


if __name__ == "__main__":
    main()
