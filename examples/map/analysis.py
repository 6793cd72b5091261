"""What the map says: how much better or worse a method is than others in each place, and how certain that is.

A *place* is a network, a depth and an optimizer. In each, every method has the test accuracies of the same seeds.

- *Lead*: the smallest of the mean paired differences to the other methods, so that a positive one is a lead over each
  of them. That a method is better than every other is an intersection-union test: its p-value is the largest of those
  of the single tests, and needs no correction for the number of methods.
- That it is worse than one of them at least is a union: the smallest p-value times the number of methods.
- That it is *equivalent* to a method within one point: two one-sided tests, as in `compare`.

All tests flip signs, as those of `compare`. Over the places, p-values are corrected after Benjamini and Hochberg, for
each question on its own, so that of the places that are named in answer to a question 5% are expected to be wrong.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from statsmodels.stats.multitest import multipletests

from examples.map.data import METHODS, PLACE
from examples.map.run import DEPTHS, NETWORKS, OPTIMIZERS
from lightning_znorm.compare.report.sign_flip import equivalence_test, invert_sign_flip, sign_flip_test

CHANCE, LEARNED = 0.1, 0.3  # three times chance: what a method exceeds that has learned something
MARGIN, WIDTH, ERROR = 0.01, 0.03, 0.05
OTHERS = ("none", "clip", "gc", "scale")


def analyze(confirmation: pd.DataFrame, method: str = "znorm", others: Sequence[str] = OTHERS) -> pd.DataFrame:
    """Compare one method with others in each place.

    Args:
        confirmation: A row per place and seed, with a column of test accuracies per method.
        method: The method.
        others: The methods that it is compared with.

    Returns:
        A row per place, in the order of the map: ``pairs``; ``learned``, whether any method of the map learns something
        there; the mean ``accuracy`` of the method; ``best``, the best of the others; ``lead``, the difference to it,
        with ``low`` and ``high``, the ends of its 95% interval; ``reached``, whether these are within three points;
        ``p_better``, ``p_worse`` and ``p_equivalent``, of all others, corrected for the places in which something is
        learned; and ``answer``, one of ``"better"``, ``"worse"``, ``"equivalent"``, ``"undecided"`` and ``"nothing"``
        where no method learns.

    """
    rows = []
    for place, runs in confirmation.groupby(PLACE, sort=False):
        means = runs[[method, *others]].mean()
        best = str(means[list(others)].idxmax())
        differences = {other: (runs[method] - runs[other]).tolist() for other in others}
        low, high = invert_sign_flip(differences[best])
        lead = float(means[method] - means[best])
        rows.append(
            dict(zip(PLACE, place, strict=True))
            | {
                "pairs": len(runs),
                "learned": bool(runs[METHODS].mean().max() > LEARNED),
                "accuracy": means[method],
                "best": best,
                "lead": lead,
                "low": low,
                "high": high,
                "reached": is_precise(runs[method] - runs[best]),
                "p_better": max(sign_flip_test(each, alternative="greater") for each in differences.values()),
                "p_worse": min(
                    1.0,
                    len(others) * min(sign_flip_test(each, alternative="less") for each in differences.values()),
                ),
                "p_equivalent": max(equivalence_test(each, MARGIN) for each in differences.values()),
            }
        )
    return _answer(pd.DataFrame(rows).sort_values(PLACE, key=_rank, ignore_index=True))


def is_precise(differences: "pd.Series[float]") -> bool:
    """Return whether both ends of the 95% interval of the mean are within three points of it."""
    low, high = invert_sign_flip(differences.tolist())
    mean = float(differences.mean())
    return max(high - mean, mean - low) <= WIDTH


def _answer(table: pd.DataFrame) -> pd.DataFrame:
    for question in ("p_better", "p_worse", "p_equivalent"):
        tested = table["learned"]
        if tested.any():
            _, corrected, *_ = multipletests(table.loc[tested, question], method="fdr_bh")
            table.loc[tested, question] = corrected
    table["answer"] = "undecided"
    for answer in ("worse", "better", "equivalent"):  # what is certain and smaller than the margin does not matter
        table.loc[table[f"p_{answer}"] <= ERROR, "answer"] = answer
    table.loc[~table["learned"], "answer"] = "nothing"
    return table


def _rank(column: pd.Series) -> pd.Series:
    orders: dict[str, list[Any]] = {
        "network": list(NETWORKS),
        "depth": sorted(DEPTHS),
        "optimizer": list(OPTIMIZERS),
    }
    return column.map(orders[str(column.name)].index)
