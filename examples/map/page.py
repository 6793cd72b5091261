"""The page of the docs with every cell of the map.

python -m examples.map.page
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from examples.map.analysis import LEARNED, OTHERS, analyze, is_precise
from examples.map.data import FOLDER, METHODS, PLACE, read_confirmation, read_trials
from examples.map.picture import NETWORK_NAMES, OPTIMIZER_NAMES
from examples.map.run import DEPTHS, NETWORKS, OPTIMIZERS

PAGE = Path("docs/map.md")
ABOUT = """# Every cell of the map

Written by `python -m examples.map.page` from [the runs](data/map/confirmation.csv) and
[the trials](data/map/trials.csv); what it says is on the page [Where it helps](results.md). {done} of {all} comparisons
have been run{missing}.

A cell is a network, a depth, an optimizer and a method. Each has as many pairs as an interval of ±2 points was expected
to take, at least 12 and at most 48. *±3* says how many of the six cells of a row have reached an interval of ±3 points:
of the difference to `znorm`, and for `znorm` itself of its lead. Of the {counted} cells in rows in which a method
exceeds {learned:.0%}, three times chance, {reached} have.

The *lead* is the difference of `znorm` to the best of `none`, `clip`, `gc` and `scale`, in points, with its 95%
interval before correction; `weights` is `znorm(min_ndim=2)`. The answer is *better* than each of these four, *worse*
than one of them at least, *equivalent* to all of them within one point, or undecided, at 5% after the correction of
Benjamini and Hochberg over all rows. In a row with the answer *nothing*, no method learns.
"""
RATES = """
## Selected learning rates

The rate at which each method has the best validation accuracy, of nine. One in parentheses is at an end of what was
tried: a better one may be beyond it.
"""


def render(confirmation: pd.DataFrame, trials: pd.DataFrame) -> str:
    """Return the page."""
    table = analyze(confirmation)
    places = len(NETWORKS) * len(DEPTHS) * len(OPTIMIZERS)
    reached = {place: count_reached(runs) for place, runs in confirmation.groupby(PLACE)}
    learned = [tuple(place) for place in table.loc[table["learned"], PLACE].itertuples(index=False)]
    about = ABOUT.format(
        done=len(table),
        all=places,
        missing="" if len(table) == places else "; the others follow",
        counted=len(METHODS) * len(learned),
        learned=LEARNED,
        reached=sum(reached[place] for place in learned),
    )
    accuracy = confirmation.groupby(PLACE)[METHODS].mean()
    lines = [about]
    columns = [
        "network",
        "layers",
        "optimizer",
        "pairs",
        "±3",
        *(_label(method) for method in METHODS),
        "lead",
        "answer",
    ]
    lines += _head(columns)
    for row in table.to_dict("records"):
        place = tuple(row[key] for key in PLACE)
        cells = [*_name(place), str(row["pairs"]), f"{reached[place]} of {len(METHODS)}"]
        cells += [f"{100 * accuracy.loc[place, method]:.1f}" for method in METHODS]
        lead, low, high = (f"{100 * row[key]:+.1f}" for key in ("lead", "low", "high"))
        cells += [f"{lead} ({low} to {high})".replace("-", "−"), row["answer"]]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [RATES, *_head(["network", "layers", "optimizer", *(_label(method) for method in METHODS)])]
    tried = dict(iter(trials.groupby(PLACE)))
    for place in table[PLACE].itertuples(index=False, name=None):
        rates = [_show_rate(tried[place], method) for method in METHODS]
        lines.append(f"| {' | '.join([*_name(place), *rates])} |")
    return "\n".join(lines) + "\n"


def count_reached(runs: pd.DataFrame) -> int:
    """Return how many methods of a place have an interval of at most three points on either side of the difference."""
    best = str(runs[list(OTHERS)].mean().idxmax())
    others = [best if method == "znorm" else method for method in METHODS]
    return sum(is_precise(runs["znorm"] - runs[other]) for other in others)


def _head(columns: list[str]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"


def _label(method: str) -> str:
    return "`weights`" if method == "znorm(min_ndim=2)" else f"`{method}`"


def _name(place: tuple[str, int, str]) -> list[str]:
    network, depth, optimizer = place
    return [NETWORK_NAMES[network], str(depth), OPTIMIZER_NAMES[optimizer]]


def _show_rate(trials: pd.DataFrame, method: str) -> str:
    own = trials[trials["method"] == method]
    rate = own.loc[own["selected"] == 1, "rate"].item()
    is_at_end = rate in (own["rate"].min(), own["rate"].max())
    return f"({rate:g})" if is_at_end else f"{rate:g}"


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=FOLDER, help="folder of the tables (%(default)s)")
    parser.add_argument("--out", type=Path, default=PAGE, help="page (%(default)s)")
    options = parser.parse_args()
    options.out.write_text(render(read_confirmation(options.data), read_trials(options.data)))
    print(f"See {options.out}")


if __name__ == "__main__":
    main()
