"""Tables of finished comparisons, small enough for `docs/data`, collected from their folders.

    python -m examples.collection results/transfer --out docs/data/transfer --images 300

adds the comparisons that are finished in a folder to `confirmation.csv` and `trials.csv`, or replaces them there.
"""

import argparse
from pathlib import Path

import pandas as pd

RATE = "model.init_args.optimizer.init_args.lr"
TABLES = {"confirmation": ["comparison", "seed"], "trials": ["comparison", "method", "rate"]}


def collect(folder: Path, images: int | None = None) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """Read one comparison.

    Args:
        folder: Of the comparison.
        images: Number of test images, if the metric is the share of them that is right.

    Returns:
        ``confirmation``, the test metric of each method in a row per seed, as the number of images that are right if
        ``images`` is given; and ``trials``, what was tried: a row per method and rate, with the mean of the validation
        metric, the number of ``seeds``, whether the rate was ``selected``, and how many confirming runs ``diverged``
        there. ``None`` if the comparison is not finished.

    """
    if not (folder / "summary.csv").is_file() or not (folder / "runs.csv").is_file():
        return None
    runs, summary = pd.read_csv(folder / "runs.csv"), pd.read_csv(folder / "summary.csv", index_col="method")
    confirming = runs[runs["stage"] == "confirmation"]
    tests = confirming.pivot_table(index="seed", columns="method", values="test", dropna=False)[[*summary.index]]
    if summary["answer"].dropna().isin(["unfinished", "unknown"]).any() or tests.isna().any(axis=None):
        return None
    if images is not None:
        tests = (tests * images).round().astype(int)
    confirmation = tests.rename_axis(columns=None).reset_index()
    trials = runs[runs["stage"] == "selection"].groupby(["method", RATE])["validation"].agg(["mean", "size"])
    trials = trials.reset_index().set_axis(["method", "rate", "validation", "seeds"], axis=1)
    selected = confirming.groupby("method")[RATE].first()
    trials["selected"] = (trials["rate"] == trials["method"].map(selected)).astype(int)
    diverged = (confirming["status"] == "diverged").groupby(confirming["method"]).sum()
    trials["diverged"] = trials["method"].map(diverged).where(trials["selected"] == 1).astype("Int64")
    for table in (confirmation, trials):
        table.insert(0, "comparison", folder.name)
    return confirmation, trials


def merge(old: pd.DataFrame | None, new: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of both tables, those of the new one where both have a comparison."""
    if old is None:
        return new
    return pd.concat([old[~old["comparison"].isin(new["comparison"])], new], ignore_index=True)


def publish(results: Path, out: Path, images: int | None = None) -> int:
    """Add the finished comparisons of a folder to the tables in another, and return their number."""
    collected = [found for folder in sorted(results.iterdir()) if (found := collect(folder, images)) is not None]
    if collected:
        out.mkdir(parents=True, exist_ok=True)
        for (name, keys), parts in zip(TABLES.items(), zip(*collected, strict=True), strict=True):
            path = out / f"{name}.csv"
            old = pd.read_csv(path) if path.is_file() else None
            table = merge(old, pd.concat(parts, ignore_index=True))
            table.sort_values(keys).to_csv(path, index=False, float_format="%.6g")
    return len(collected)


def read_confirmation(folder: Path, images: int | None = None) -> pd.DataFrame:
    """Return the test metric of each method, a row per comparison and seed."""
    table = pd.read_csv(folder / "confirmation.csv")
    methods = table.columns.drop(TABLES["confirmation"])
    return table.assign(**{method: table[method] / images for method in methods}) if images else table


def read_trials(folder: Path) -> pd.DataFrame:
    """Return what was tried: a row per comparison, method and rate."""
    return pd.read_csv(folder / "trials.csv")


def main() -> None:
    """Collect the finished comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="folder of the comparisons")
    parser.add_argument("--out", type=Path, required=True, help="folder of the tables")
    parser.add_argument("--images", type=int, help="number of test images, if the metric is the share that is right")
    options = parser.parse_args()
    count = publish(options.results, options.out, options.images)
    if not count:
        parser.error(f"{options.results} has no finished comparison: the command that began them goes on with them")
    print(f"{count} comparisons in {options.out}")


if __name__ == "__main__":
    main()
