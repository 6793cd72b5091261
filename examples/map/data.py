"""The published runs of the map: tables in `docs/data/map`, collected from the folders of comparisons.

    python -m examples.map.data results/map

adds the comparisons that are finished in a folder to these tables, or replaces them there.
"""

import argparse
from pathlib import Path

import pandas as pd

from examples.map.run import OUT, PUBLISHED, STARTS, Place

METHODS = list(STARTS)
PLACE = ["network", "depth", "optimizer"]
FOLDER = PUBLISHED
TEST_IMAGES = 300  # of which `confirmation.csv` has the number that is right
RATE = "model.init_args.optimizer.init_args.lr"


def read_confirmation(folder: Path = FOLDER) -> pd.DataFrame:
    """Return the test accuracy of each method, a row per place and seed."""
    table = pd.read_csv(folder / "confirmation.csv")
    return table.assign(**{method: table[method] / TEST_IMAGES for method in METHODS})


def read_trials(folder: Path = FOLDER) -> pd.DataFrame:
    """Return what was tried: a row per place, method and rate, with the mean of the validation accuracy."""
    return pd.read_csv(folder / "trials.csv")


def parse_place(name: str) -> Place:
    """Return the place of a folder's name.

    >>> parse_place("residual-layernorm-20-adam-eps")
    Place(network='residual-layernorm', depth=20, optimizer='adam-eps')

    """
    words = name.split("-")
    number = next(position for position, word in enumerate(words) if word.isdigit())
    return Place("-".join(words[:number]), int(words[number]), "-".join(words[number + 1 :]))


def collect(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """Return confirmation and trials of one comparison, ``None`` if it is not finished."""
    if not (folder / "summary.csv").is_file() or not (folder / "runs.csv").is_file():
        return None
    runs, summary = pd.read_csv(folder / "runs.csv"), pd.read_csv(folder / "summary.csv", index_col="method")
    confirming = runs[runs["stage"] == "confirmation"]
    tests = confirming.pivot_table(index="seed", columns="method", values="test", dropna=False)
    if summary["answer"].dropna().isin(["unfinished", "unknown"]).any() or tests.isna().any(axis=None):
        return None
    place = vars(parse_place(folder.name))
    right = (tests[METHODS] * TEST_IMAGES).round().astype(int)
    confirmation = right.reset_index().assign(**place)[[*PLACE, "seed", *METHODS]]
    trials = runs[runs["stage"] == "selection"].groupby(["method", RATE])["validation"].agg(["mean", "size"])
    trials = trials.reset_index().set_axis(["method", "rate", "validation", "seeds"], axis=1)
    selected = confirming.groupby("method")[RATE].first()
    trials["selected"] = (trials["rate"] == trials["method"].map(selected)).astype(int)
    diverged = (confirming["status"] == "diverged").groupby(confirming["method"]).sum()
    trials["diverged"] = trials["method"].map(diverged).where(trials["selected"] == 1).astype("Int64")
    return confirmation, trials.assign(**place)[[*PLACE, *trials.columns]]


def merge(old: pd.DataFrame | None, new: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of both, those of the new table where both have a place."""
    if old is None:
        return new
    known = new[PLACE].apply(tuple, axis=1)
    kept = old[~old[PLACE].apply(tuple, axis=1).isin({*known})]
    return pd.concat([kept, new], ignore_index=True)


def main() -> None:
    """Collect the finished comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="?", type=Path, default=OUT, help="folder of the comparisons (%(default)s)")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the tables (%(default)s)")
    options = parser.parse_args()
    collected = [found for folder in sorted(options.results.iterdir()) if (found := collect(folder)) is not None]
    if not collected:
        parser.error(f"{options.results} has no finished comparison: run `make map` first")
    options.out.mkdir(parents=True, exist_ok=True)
    for name, parts in zip(("confirmation", "trials"), zip(*collected, strict=True), strict=True):
        path = options.out / f"{name}.csv"
        table = merge(pd.read_csv(path) if path.is_file() else None, pd.concat(parts, ignore_index=True))
        keys = [*PLACE, "seed"] if name == "confirmation" else [*PLACE, "method", "rate"]
        table.sort_values(keys).to_csv(path, index=False, float_format="%.4g")
    print(f"{len(collected)} comparisons in {options.out}")


if __name__ == "__main__":
    main()
