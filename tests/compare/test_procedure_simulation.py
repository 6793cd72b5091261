"""The simulation of whole comparisons: it makes the runs that the plan promises, and its truth is one."""

import json

import numpy as np
import pytest

from benchmarks import procedure_simulation as simulation


@pytest.fixture(scope="module", name="outcomes")
def few_comparisons():
    rng = np.random.default_rng(1)
    return [simulation.compare(rng, 4.0, 0.0, None) for _ in range(15)]


def test_each_method_has_nine_trials_three_finalists_and_eight_pairs(outcomes):
    assert {outcome["runs"] for outcome in outcomes} == {3 * (9 + 3 * 2 + 8)}
    assert {outcome["pairs"] for outcome in outcomes} == {8}


def test_a_large_difference_is_found(outcomes):
    found = simulation.summarize(outcomes)
    assert found["answers"]["better"] > 0.5
    assert found["answers"]["worse"] == 0
    assert found["coverage"] > 0.8
    assert 0 <= found["loss"] < 2


def test_a_failed_run_is_at_chance_and_a_run_is_itself_again():
    curves = simulation.draw_curves(np.random.default_rng(0), 0.0)
    design_run = simulation.Run(simulation.METHODS[0], simulation.Search("lr", 1e-3).setting_at(-12), 0)
    trainings = simulation.Trainings(curves, 0.0, 0)
    assert trainings.measure(design_run, 0) == trainings.measure(design_run, 0)
    assert trainings.measure(design_run, 0) != trainings.measure(design_run, 1)
    assert simulation.Trainings(curves, 1.0, 0).measure(design_run, 0) == simulation.CHANCE


def test_published_figures_keep_their_promises():
    rows = json.loads((simulation.RESULTS / "procedure_simulation.json").read_text())
    assert [(row["case"], row["effect"]) for row in rows] == [
        (case, effect)
        for case in ("8 pairs", "pairs for a width", "8 pairs, failures")
        for effect in simulation.EFFECTS
    ]
    for row in rows:
        assert row["coverage"] > 0.92
        assert row["wrong_sign"] < 0.02
        assert row["wrong_equivalent"] < 0.05
        assert row["loss"] < 0.5
