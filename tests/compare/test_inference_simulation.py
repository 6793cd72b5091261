"""The simulation of the analysis: it is that of the package, and keeps its promises."""

import json
import math

import numpy as np
import pytest

from benchmarks import inference_simulation as simulation
from lightning_znorm.compare.report.inference import judge
from lightning_znorm.compare.report.sign_flip import EXACT_PAIRS


@pytest.mark.parametrize("name", simulation.NOISE)
@pytest.mark.parametrize("pairs", [6, 9, EXACT_PAIRS + 1])
def test_simulation_uses_the_analysis_of_the_package(name, pairs):
    samples = simulation.draw_differences(np.random.default_rng(4), name, 4, 3, pairs, effect=0.4)
    found = simulation.analyse(samples, margin=1.0, flips=100_000)
    smallest = simulation.smallest_after_holm(found["p"])
    for row, methods in enumerate(samples):
        judged = judge(dict(enumerate(methods)), margin=1.0)
        assert smallest[row] == pytest.approx(min(one.p_holm for one in judged.values()))
        for column, one in judged.items():
            figures = (one.low, one.high, one.p, one.p_equivalence)
            assert [found[key][row, column] for key in ("low", "high", "p", "equivalence")] == pytest.approx(figures)


@pytest.mark.parametrize("name", simulation.NOISE)
def test_simulated_differences_have_the_truth_that_is_claimed(name):
    samples = simulation.draw_differences(np.random.default_rng(0), name, 20_000, 2, 6, effect=0.3)
    assert samples.mean() == pytest.approx(0.3, abs=0.02)
    assert samples.std() == pytest.approx(1.0, abs=0.05)


def test_published_simulation_keeps_the_promises_of_the_analysis():
    results = json.loads(simulation.RESULTS.read_text())
    symmetric = [row for row in results["fixed"] if row["distribution"] != "skewed"]
    assert {row["pairs"] for row in symmetric} == set(simulation.PAIRS)
    error = 3 * math.sqrt(0.05 * 0.95 / results["repetitions"])
    for row in symmetric:
        assert row["coverage"] > 0.95 - error
        assert max(row["wrong_different"], row["wrong_any_of_3"], row["wrong_equivalent"]) < 0.05 + error


def test_simulation_is_repeatable():
    first, second = (simulation.simulate(np.random.default_rng(3), "rounded", 6, 20) for _ in range(2))
    assert first == second
