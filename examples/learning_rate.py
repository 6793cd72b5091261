"""Which learning rate does SGD want with and without ZNorm? A sweep on the handwritten digits.

Writes `runs.csv` and `accuracy.png`; a run whose row is already in `runs.csv` is not repeated, so that the sweep can be
interrupted. About 15 minutes on 2 CPU cores.
"""

import argparse
from pathlib import Path
from typing import Any

import pandas as pd
from demo import COLORS, QUIET, TASKS, Run, shorten, silence, tidy, train
from matplotlib import pyplot as plt

METHODS = {"SGD": [], "SGD + ZNorm": ["--znorm"]}
RATES = (0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001)
KEY = ["method", "lr", "seed", "epochs", "batches"]


def plot(frame: pd.DataFrame, epochs: int, path: Path) -> None:
    """Draw accuracy against learning rate: the mean over the seeds, and their range."""
    figure, axis = plt.subplots(figsize=(6.5, 4.2), layout="constrained")
    for method, color in zip(METHODS, COLORS.values(), strict=True):
        accuracy = frame[frame["method"] == method].groupby("lr")["test_acc"]
        mean, low, high = accuracy.mean(), accuracy.min(), accuracy.max()
        axis.plot(mean.index, mean, marker="o", color=color, label=method)
        axis.fill_between(mean.index, low, high, color=color, alpha=0.15, linewidth=0)
    axis.set(xscale="log", xlabel="learning rate of SGD (momentum 0.9)", ylabel="test accuracy")
    axis.set_title(f"Handwritten digits, {epochs} epochs: mean and range of the seeds")
    tidy(axis)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    """Run the sweep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/learning_rate"), help="folder (%(default)s)")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batches", type=int, default=0, help="stop each epoch after this many batches, 0 for none")
    options = parser.parse_args(argv)
    silence()
    options.out.mkdir(parents=True, exist_ok=True)
    table = options.out / "runs.csv"
    rows = pd.read_csv(table).to_dict("records") if table.exists() else []
    done: dict[tuple[Any, ...], Any] = {tuple(row[name] for name in KEY): row for row in rows}
    how_long = (options.epochs, options.batches)
    wanted = [(m, lr, seed, *how_long) for seed in range(options.seeds) for lr in options.rates for m in METHODS]
    todo = [key for key in wanted if key not in done]
    for number, key in enumerate(todo, start=1):
        method, lr, seed, *_ = key
        print(f"[{number}/{len(todo)}] {method}, lr {lr:g}, seed {seed}", flush=True)
        run = Run(TASKS["digits"], method)
        flags = [*QUIET, *METHODS[method], "--trainer.enable_progress_bar=false", f"--seed_everything={seed}"]
        flags += [f"--data.init_args.seed={seed}", *shorten(options.epochs, options.batches)]
        flags += ["--model.init_args.optimizer=SGD", f"--model.init_args.lr={lr}"]
        flags += ['--model.init_args.optimizer_args={"momentum": 0.9}']
        train(run, flags)
        result = {"test_acc": round(run.final, 4), "seconds": round(run.seconds, 1)}
        done[key] = dict(zip(KEY, key, strict=True)) | result
        pd.DataFrame(done.values()).to_csv(table, index=False)
    frame = pd.DataFrame([done[key] for key in wanted])
    plot(frame, options.epochs, options.out / "accuracy.png")
    summary = frame.pivot_table(index="lr", columns="method", values="test_acc", aggfunc=["mean", "min", "max"])
    print(summary.sort_index(ascending=False).to_string(float_format=lambda value: f"{value:.3f}"))


if __name__ == "__main__":
    main()
