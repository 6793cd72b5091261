"""Does the analysis of a comparison keep what it promises? Simulated differences whose truth is known.

For several distributions of a run's metric and numbers of pairs: how often the 95% interval covers the true difference
(also Student's interval), how often a method that is as good is called different (one method, and any of three that
share the baseline), how often one that differs by the margin is called equivalent, and how often a difference of one
standard deviation, or none, is found. Also the coverage after the number of pairs was chosen for a width from 12 pilot
pairs. Prints tables and writes them as JSON. About 70 seconds on one CPU core.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[1]))
from lightning_znorm.compare.question.pairs import count_pairs_for_width
from lightning_znorm.compare.report.sign_flip import compute_tail, find_low_end, find_tolerance, subset_means

RESULTS = Path(__file__).parent / "results/inference_simulation.json"
PAIRS = (6, 8, 12, 20)
WIDTHS = (0.4, 0.5, 0.7)  # in standard deviations of a difference
METHODS = 3
ERROR = 0.05
FLIPS = 10_000  # a tenth of the package's, for time
CHUNK = 100
DUST = 1e-9  # of float64, at the ends of intervals of tied differences

Draw = Callable[[np.random.Generator, tuple[int, ...], tuple[int, ...]], tuple[np.ndarray, np.ndarray]]
# noise of a method's runs and of the baseline's, and the standard deviation of their difference
NOISE: dict[str, tuple[Draw, float]] = {
    "normal": (lambda rng, methods, base: (rng.normal(size=methods), rng.normal(size=base)), 2**0.5),
    "heavy tails": (lambda rng, methods, base: (rng.standard_t(3, methods), rng.standard_t(3, base)), 6**0.5),
    "skewed": (
        lambda rng, methods, base: (1 - rng.exponential(size=methods), (1 - rng.exponential(size=base)) / 4),
        (1 + 1 / 16) ** 0.5,
    ),
    "rounded": (lambda rng, methods, base: (rng.normal(size=methods), rng.normal(size=base)), (2 + 2 / 12) ** 0.5),
}


def draw_differences(
    rng: np.random.Generator, name: str, repetitions: int, methods: int, pairs: int, effect: float = 0.0
) -> np.ndarray:
    """Return differences to a shared baseline, of shape (repetitions, methods, pairs), their mean being the effect.

    Their standard deviation is 1. Rounded metrics are multiples of the standard deviation of a run.
    """
    draw, deviation = NOISE[name]
    runs, baseline = draw(rng, (repetitions, methods, pairs), (repetitions, 1, pairs))
    runs = runs + effect * deviation
    if name == "rounded":
        offset = rng.uniform(size=(repetitions, 1, 1))  # else, the truth is always where the steps are
        runs, baseline = np.round(runs + offset), np.round(baseline + offset)
    return (runs - baseline) / deviation


def analyse(differences: np.ndarray, margin: float = 1.0, flips: int = FLIPS) -> dict[str, np.ndarray]:
    """Return the interval and the p-values of many samples, whose pairs are the last dimension."""
    samples = differences.reshape(-1, differences.shape[-1])
    parts: list[list[np.ndarray]] = []
    for chunk in np.array_split(samples, max(1, len(samples) // CHUNK)):
        tolerance = find_tolerance(chunk, rounding=0.0)
        part = []
        for sign in (1, -1):
            means = subset_means(sign * chunk, flips)
            part += [sign * find_low_end(means, ERROR / 2), compute_tail(means, 0.0, tolerance)]
            part += [compute_tail(means, -margin, tolerance)]
        parts.append(part)
    low, greater, above, high, less, below = (
        np.concatenate(part).reshape(differences.shape[:-1]) for part in zip(*parts, strict=True)
    )
    p = np.minimum(1.0, 2 * np.minimum(greater, less))
    return {"low": low, "high": high, "p": p, "equivalence": np.maximum(above, below)}


def smallest_after_holm(p: np.ndarray) -> np.ndarray:
    """Return the smallest p-value of each row after Holm's correction; one is significant if any is."""
    return np.minimum(1.0, p.shape[-1] * p.min(axis=-1))


def simulate(rng: np.random.Generator, name: str, pairs: int, repetitions: int) -> dict[str, Any]:
    """Return the shares of errors and answers of one distribution and number of pairs."""
    same = draw_differences(rng, name, repetitions, METHODS, pairs)
    at_margin = draw_differences(rng, name, repetitions, 1, pairs, effect=1.0)
    none, differs = analyse(same), analyse(at_margin)
    student_low, student_high = stats.t.interval(
        1 - ERROR, pairs - 1, loc=same.mean(-1), scale=np.maximum(stats.sem(same, axis=-1), 1e-12)
    )
    return {
        "distribution": name,
        "pairs": pairs,
        "coverage": ((none["low"] <= DUST) & (none["high"] >= -DUST)).mean(),
        "coverage_t": ((student_low <= 0) & (student_high >= 0)).mean(),
        "half_length": (none["high"] - none["low"]).mean() / 2,
        "half_length_t": (student_high - student_low).mean() / 2,
        "wrong_different": (none["p"] <= ERROR).mean(),
        "wrong_any_of_3": (smallest_after_holm(none["p"]) <= ERROR).mean(),
        "wrong_equivalent": (differs["equivalence"] <= ERROR).mean(),
        "found_different": (differs["p"] <= ERROR).mean(),
        "found_equivalent": (none["equivalence"] <= ERROR).mean(),
    }


def simulate_width(rng: np.random.Generator, name: str, width: float, repetitions: int) -> dict[str, Any]:
    """Return the coverage of intervals whose number of pairs follows from 12 pilot pairs."""
    pilot, largest = 12, 48
    differences = draw_differences(rng, name, repetitions, 1, largest)[:, 0]
    deviations = differences[:, :pilot].std(axis=-1, ddof=1)
    counts = np.array([count_pairs_for_width(deviation, width, pilot, largest) for deviation in deviations])
    covered, lengths = np.empty(repetitions, bool), np.empty(repetitions)
    for count in np.unique(counts):
        found = analyse(differences[counts == count, :count])
        covered[counts == count] = (found["low"] <= DUST) & (found["high"] >= -DUST)
        lengths[counts == count] = (found["high"] - found["low"]) / 2
    return {
        "distribution": name,
        "width": width,
        "coverage": covered.mean(),
        "half_length": lengths.mean(),
        "within_width": (lengths <= width).mean(),
        "pairs_mean": counts.mean(),
        "pairs_largest_share": (counts == largest).mean(),
    }


def show(rows: list[dict[str, Any]]) -> str:
    """Return a table in Markdown."""
    lines = [" | ".join(rows[0]), " | ".join("---" for _ in rows[0])]
    lines += [
        " | ".join(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()) for row in rows
    ]
    return "\n".join(f"| {line} |" for line in lines)


def main() -> None:
    """Simulate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=10_000, help="samples of each case (%(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    start = time.perf_counter()
    rng, repetitions = np.random.default_rng(0), options.repetitions
    fixed = [simulate(rng, name, pairs, repetitions) for pairs in PAIRS for name in NOISE]
    chosen = [simulate_width(rng, name, width, repetitions) for width in WIDTHS for name in NOISE]
    for rows in (fixed, chosen):
        for row in rows:
            row |= {key: round(float(value), 4) for key, value in row.items() if isinstance(value, np.floating)}
        print(show(rows), end="\n\n")
    print(
        f"{time.perf_counter() - start:.0f} s; standard error of 5%: {(ERROR * (1 - ERROR) / repetitions) ** 0.5:.4f}"
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    about = {"repetitions": repetitions, "methods": METHODS, "flips": FLIPS}
    options.out.write_text(json.dumps({**about, "fixed": fixed, "width": chosen}, indent=1) + "\n")


if __name__ == "__main__":
    main()
