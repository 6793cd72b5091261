"""Which learning rate does SGD want with and without ZNorm? A sweep on the handwritten digits, three seeds each.

Writes `runs.csv` and `accuracy.png`; a run whose row is already in `runs.csv` is not repeated, so that the sweep can be
interrupted. About 20 minutes on 2 CPU cores.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd
from demo import COLORS, QUIET, TASKS, Run, silence, train
from matplotlib import pyplot as plt

METHODS = {"SGD": [], "SGD + ZNorm": ["--znorm"]}
RATES = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003)


def plot(frame: pd.DataFrame, path: Path) -> None:
    """Draw accuracy against learning rate: the mean over the seeds, and their range."""
    figure, axis = plt.subplots(figsize=(6.5, 4.2), layout="constrained")
    for method, color in zip(METHODS, COLORS.values(), strict=True):
        accuracy = frame[frame["method"] == method].groupby("lr")["test_acc"]
        mean, low, high = accuracy.mean(), accuracy.min(), accuracy.max()
        axis.plot(mean.index, mean, marker="o", color=color, label=method)
        axis.fill_between(mean.index, low, high, color=color, alpha=0.15, linewidth=0)
    axis.set(xscale="log", xlabel="learning rate of SGD (momentum 0.9)", ylabel="test accuracy")
    axis.set_title("Handwritten digits, ResNet-18, 4 epochs: mean and range of the seeds")
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    """Run the sweep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/learning_rate"), help="folder (%(default)s)")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batches", type=int, help="stop each epoch after this many batches")
    options = parser.parse_args(argv)
    sys.argv = sys.argv[:1]  # LightningCLI looks at it even when it is given arguments
    silence()
    options.out.mkdir(parents=True, exist_ok=True)
    table = options.out / "runs.csv"
    rows = pd.read_csv(table).to_dict("records") if table.exists() else []
    done = {(row["method"], row["lr"], row["seed"]) for row in rows}
    todo = [(m, lr, seed) for seed in range(options.seeds) for lr in options.rates for m in METHODS]
    todo = [key for key in todo if key not in done]
    for number, (method, lr, seed) in enumerate(todo, start=1):
        print(f"[{number}/{len(todo)}] {method}, lr {lr:g}, seed {seed}", flush=True)
        run = Run(TASKS["digits"], method)
        flags = [*QUIET, *METHODS[method], "--trainer.enable_progress_bar=false", f"--seed_everything={seed}"]
        flags += [f"--data.init_args.seed={seed}", f"--trainer.max_epochs={options.epochs}"]
        flags += ["--model.init_args.optimizer=SGD", f"--model.init_args.lr={lr}"]
        flags += ['--model.init_args.optimizer_args={"momentum": 0.9}']
        if options.batches is not None:
            flags += [f"--trainer.limit_{split}_batches={options.batches}" for split in ("train", "val", "test")]
        train(run, flags)
        rows.append({"method": method, "lr": lr, "seed": seed, "test_acc": run.final, "seconds": run.seconds})
        pd.DataFrame(rows).to_csv(table, index=False, float_format="%.4g")
    frame = pd.DataFrame(rows)
    plot(frame, options.out / "accuracy.png")
    summary = frame.pivot_table(index="lr", columns="method", values="test_acc", aggfunc=["mean", "min", "max"])
    print(summary.sort_index(ascending=False).to_string(float_format=lambda value: f"{value:.3f}"))


if __name__ == "__main__":
    main()
