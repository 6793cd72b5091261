"""Does a whole comparison keep what it promises? Simulated methods whose truth is known.

Each method has a curve of its metric over the learning rate, with its own best rate, a cliff beyond which it stays at
chance, and noise from seed to seed. The stages of `compare` select a rate and confirm it with fresh seeds, as for real
trainings; `judge` answers. Prints how many runs that takes, how much the selection loses against the best rate, how
often the interval covers the true difference of the selected rates, and which answers were given; writes them as JSON
and as a picture. About 13 minutes on one CPU core.
"""

import argparse
import gc
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from lightning_znorm.compare.question.methods import parse_methods
from lightning_znorm.compare.question.run import Run
from lightning_znorm.compare.question.search import Search
from lightning_znorm.compare.question.stages import Design, make_plan
from lightning_znorm.compare.report.inference import judge

RESULTS = Path(__file__).parent / "results"
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "procedure_simulation.png"
METHODS = parse_methods("none,gc,znorm")
CHANCE, PEAK = 10.0, 90.0
DEVIATION = 2.0  # from seed to seed, in points
SHARED = 0.2  # share of its variance that methods have in common at a seed
MARGIN = 2.0
EFFECTS = (0.0, 1.0, 2.0, 4.0)  # of znorm, in points
FAILURES = 0.1  # share of runs that stay at chance for no reason of the rate


@dataclass(frozen=True)
class Curve:
    """Metric over the learning rate, in quarters of a decade from the start."""

    best: float
    peak: float
    below: float
    above: float
    cliff: float

    def at(self, position: int) -> float:
        """Return the expected metric."""
        distance = (position - self.best) / 4
        if distance > self.cliff:
            return CHANCE
        return max(CHANCE, self.peak - (self.below if distance < 0 else self.above) * distance**2)


def draw_curves(rng: np.random.Generator, effect: float) -> dict[str, Curve]:
    """Return a curve per method; the best rates are up to two decades from the start."""
    return {
        method.label: Curve(
            rng.normal(0, 3),
            PEAK + effect * (method.label == "znorm"),
            rng.uniform(4, 12),
            rng.uniform(6, 30),
            rng.uniform(0.4, 1.5),
        )
        for method in METHODS
    }


class Trainings:
    """Metrics of runs: the same for the same run."""

    def __init__(self, curves: dict[str, Curve], failures: float, seed: int) -> None:
        self._curves, self._failures, self._seed = curves, failures, seed

    def measure(self, run: Run, split: int) -> float:
        """Return the metric of a run on a split."""
        expected = self._curves[run.method.label].at(run.setting.number)
        if expected == CHANCE:
            return CHANCE
        own = np.random.default_rng([self._seed, run.seed, len(run.method.label), run.setting.number + 1000])
        if own.random() < self._failures:
            return CHANCE
        shared = np.random.default_rng([self._seed, run.seed])
        noise = SHARED**0.5 * shared.normal() + (1 - SHARED) ** 0.5 * own.normal()
        on_split = np.random.default_rng([self._seed, run.seed, len(run.method.label), split])
        return float(max(CHANCE, expected + DEVIATION * (0.9 * noise + 0.4 * on_split.normal())))


def compare(rng: np.random.Generator, effect: float, failures: float, width: float | None) -> dict[str, Any]:
    """Make one comparison, and return what came of it and what is true."""
    curves = draw_curves(rng, effect)
    trainings = Trainings(curves, failures, int(rng.integers(1 << 31)))
    candidates = {method.label: Search("lr", 1e-3) for method in METHODS}
    design = Design(METHODS, "none", candidates, range(3), range(3, 51), width=width)
    validation: dict[str, float] = {}
    test: dict[str, float] = {}
    while True:
        plan = make_plan(design, validation, test)
        missing = [run for run in plan.runs if str(run) not in validation]
        if not missing:
            break
        for run in missing:
            validation[str(run)], test[str(run)] = trainings.measure(run, 0), trainings.measure(run, 1)
    metrics = {label: [test[str(run)] for run in plan.confirmation if run.method.label == label] for label in curves}
    differences = {label: np.subtract(metrics[label], metrics["none"]) for label in ("gc", "znorm")}
    judgements = judge(differences, margin=MARGIN)
    expected = {
        label: (1 - failures) * curves[label].at(plan.selected[label].number) + failures * CHANCE for label in curves
    }
    truth = {label: expected[label] - expected["none"] for label in differences}
    return {
        "runs": len(plan.runs),
        "pairs": len(metrics["none"]),
        "loss": [curve.peak - curve.at(plan.selected[label].number) for label, curve in curves.items()],
        "unsettled": len(plan.unsettled),
        "covered": [found.low <= truth[label] <= found.high for label, found in judgements.items()],
        "answers": {label: found.answer for label, found in judgements.items()},
        "truth": truth,
    }


def summarize(outcomes: list[dict[str, Any]]) -> dict[str, Any]:
    """Return shares and means over comparisons."""
    answers = [outcome["answers"]["znorm"] for outcome in outcomes]
    small = [(o["answers"][m], abs(o["truth"][m])) for o in outcomes for m in o["answers"]]
    wrong_sign = [
        answer == ("worse" if truth > 0 else "better")
        for outcome in outcomes
        for answer, truth in ((outcome["answers"][m], outcome["truth"][m]) for m in outcome["answers"])
    ]
    large = [answer for answer, truth in small if truth >= MARGIN]
    return {
        "comparisons": len(outcomes),
        "runs": float(np.mean([outcome["runs"] for outcome in outcomes])),
        "pairs": float(np.mean([outcome["pairs"] for outcome in outcomes])),
        "loss": float(np.mean([loss for outcome in outcomes for loss in outcome["loss"]])),
        "unsettled": float(np.mean([outcome["unsettled"] / len(METHODS) for outcome in outcomes])),
        "coverage": float(np.mean([covered for outcome in outcomes for covered in outcome["covered"]])),
        "wrong_sign": float(np.mean(wrong_sign)),
        "wrong_equivalent": float(np.mean([answer == "equivalent" for answer in large])) if large else None,
        "answers": {answer: answers.count(answer) / len(answers) for answer in dict.fromkeys(ANSWERS)},
    }


ANSWERS = ("better", "equivalent", "undecided", "worse")


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the answers about znorm over its true effect."""
    from matplotlib.figure import Figure

    cases = list(dict.fromkeys(row["case"] for row in rows))
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    panels = figure.subplots(1, len(cases), sharey=True)
    colors = dict(zip(ANSWERS, ("#2878b5", "#5fa55a", "#c8c8c8", "#d9480f"), strict=True))
    for panel, case in zip(panels, cases, strict=True):
        chosen = [row for row in rows if row["case"] == case]
        bottom = np.zeros(len(chosen))
        for answer in ANSWERS:
            shares = np.array([row["answers"][answer] for row in chosen])
            panel.bar(
                [f"{row['effect']:g}" for row in chosen], shares, bottom=bottom, color=colors[answer], label=answer
            )
            bottom += shares
        panel.set_title(f"{case} ({chosen[0]['runs']:.0f} runs)", fontsize=10)
    panels[0].set_ylabel("share of comparisons")
    figure.supxlabel(f"true difference at the best rates, in points (margin {MARGIN:g})", fontsize=10)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Simulate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=500)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder (%(default)s)")
    parser.add_argument("--picture", type=Path, default=PICTURE, help="picture (%(default)s)")
    options = parser.parse_args()
    start, rows = time.perf_counter(), []
    for case, failures, width in (
        ("8 pairs", 0.0, None),
        ("pairs for a width", 0.0, 1.0),
        ("8 pairs, failures", FAILURES, None),
    ):
        for effect in EFFECTS:
            rng = np.random.default_rng(0)
            outcomes = [compare(rng, effect, failures, width) for _ in range(options.repetitions)]
            row = {"case": case, "effect": effect, **summarize(outcomes)}
            rows.append(row)
            answers = ", ".join(f"{answer} {share:.2f}" for answer, share in row["answers"].items())
            print(f"{case:18s} effect {effect:g}: {row['runs']:.0f} runs, {row['pairs']:.1f} pairs, loss", end=" ")
            print(f"{row['loss']:.2f}, coverage {row['coverage']:.3f}, wrong sign {row['wrong_sign']:.3f}", end=", ")
            print(
                f"wrong equivalent {row['wrong_equivalent']}; {answers} ({time.perf_counter() - start:.0f} s)",
                flush=True,
            )
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "procedure_simulation.json").write_text(json.dumps(rows, indent=1) + "\n")
    draw(rows, options.picture)


if __name__ == "__main__":
    with mock.patch.object(gc, "collect"):  # statsmodels collects garbage at each correction
        main()
