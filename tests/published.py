"""Pages of the docs and the runs that are published beside them, as the tests read them."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.power import TTestPower

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAPER = DOCS / "data" / "paper"
RATE = "model.init_args.lr"  # its key when these runs were made, before an optimizer was a class path
RESOLUTION = 1e-6  # of means of metrics in float32


def find_sections(page):
    """Return the text of each section of a page by its title."""
    parts = re.split(r"^## (.+)\n", page, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def read_rows(text, start):
    """Return the cells of the table that begins with ``start``."""
    lines = text[text.index(start) :].split("\n\n")[0].splitlines()
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if not line.startswith(("|--", "| --"))
    ]


def find_means(runs, method):
    """Return the mean of the validation metric by rate."""
    return runs[runs.method == method].groupby(RATE).validation.mean()


def find_tied(means):
    """Return the rates with the highest mean; means that differ by rounding alone are the same."""
    return list(means.index[means >= means.max() * (1 - RESOLUTION)])


def find_rate(runs, method):
    """Return the selected rate: of tied neighbors the middle one, of two the smaller."""
    means = find_means(runs, method)
    tied = find_tied(means)
    if list(means.index).index(tied[-1]) - list(means.index).index(tied[0]) >= len(tied):
        return runs.loc[runs[RATE].isin(tied), RATE].iloc[0]
    return tied[(len(tied) - 1) // 2]


def select(runs):
    """Return the runs of each method at its selected rate, in the order of the seeds."""
    return {
        method: runs[(runs.method == method) & (runs[RATE] == find_rate(runs, method))].sort_values("seed")
        for method in runs.method.unique()
    }


def find_range(runs, method, chance):
    """Return the lowest and the highest rate around the best one that are at least half as good, and all rates."""
    means = find_means(runs, method)
    rates, good = list(means.index), means - chance >= (means.max() - chance) / 2 * (1 - RESOLUTION)
    low = high = rates.index(find_rate(runs, method))
    while low > 0 and good.iloc[low - 1]:
        low -= 1
    while high < len(rates) - 1 and good.iloc[high + 1]:
        high += 1
    return rates[low], rates[high], rates


def find_reach(values):
    """Return half the length of the 95% interval of the mean."""
    return stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))


def show_interval(values, form):
    """Return the 95% interval of the mean."""
    reach = find_reach(values)
    return f"{values.mean() - reach:{form}} to {values.mean() + reach:{form}}".replace("-", "−")


def find_differences(selected):
    """Return the differences to ``none`` of each other method, seed by seed."""
    none = selected["none"].test.to_numpy()
    return {method: of.test.to_numpy() - none for method, of in selected.items() if method != "none"}


def correct_after_holm(differences):
    """Return the p-value of each method, corrected for their number."""
    values = {method: stats.ttest_1samp(of, 0).pvalue for method, of in differences.items()}
    corrected, largest = {}, 0.0
    for number, method in enumerate(sorted(values, key=values.get)):
        largest = max(largest, min(1.0, values[method] * (len(values) - number)))
        corrected[method] = largest
    return corrected


def read(name):
    """Return the runs of a comparison of the paper."""
    return pd.read_csv(PAPER / f"{name}-small.csv")


class Runs:
    """The runs of a comparison, by method and rate."""

    def __init__(self, name):
        self.frame = read(name)
        self.rates = sorted(self.frame[RATE].unique())
        self.methods = list(self.frame.method.unique())
        self.seeds = self.frame.seed.nunique()
        (self.steps,) = self.frame.steps.unique()
        self.selected = select(self.frame)
        self.differences = find_differences(self.selected)
        self.p = correct_after_holm(self.differences) if self.seeds > 1 else {}

    def rate(self, method):
        return find_rate(self.frame, method)

    def at(self, method, rate):
        return self.frame[(self.frame.method == method) & (self.frame[RATE] == rate)].sort_values("seed")

    def validation(self, method, rate):
        return f"{self.at(method, rate).validation.mean():.3f}"

    def test(self, method, rate):
        return f"{self.at(method, rate).test.mean():.3f}"

    def seeds_needed(self, method):
        """Return the number that finds a difference as large as the observed one, as these reports gave it."""
        values = self.differences[method]
        effect = abs(values.mean()) / values.std(ddof=1)
        level = 0.05 / len(self.differences)
        return int(np.ceil(TTestPower().solve_power(effect_size=effect, alpha=level, power=0.8)))

    def factor(self, method, chance=0.1):
        """Return how wide the working range is, and whether an end of the sweep cuts it off below or above."""
        low, high, rates = find_range(self.frame, method, chance)
        return high / low, low == rates[0], high == rates[-1]
