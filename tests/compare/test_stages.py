"""The plan of a comparison: which runs follow from finished ones."""

import math
import random

import numpy as np
import pytest

from lightning_znorm.compare.question.candidates import Listed
from lightning_znorm.compare.question.methods import parse_methods
from lightning_znorm.compare.question.pairs import LARGEST, PILOT
from lightning_znorm.compare.question.run import Setting
from lightning_znorm.compare.question.search import Search
from lightning_znorm.compare.question.stages import Design, make_plan

METHODS = parse_methods("none,gc,znorm")
BEST = {"none": -3, "gc": 0, "znorm": 7}  # positions


def searched(**options):
    return {method.label: Search("lr", 1e-2, **options) for method in METHODS}


def make_design(candidates=None, **options):
    candidates = searched() if candidates is None else candidates
    return Design(METHODS, "none", candidates, range(3), range(3, 100), **options)


def validate(run):
    rng = np.random.default_rng([run.seed, run.setting.number + 100])
    return 1 - (run.setting.number - BEST[run.method.label]) ** 2 / 100 + 0.001 * rng.normal()


def evaluate(run, deviation=0.01):
    rng = np.random.default_rng([run.seed, len(run.method.label)])
    return validate(run) + deviation * rng.normal()


def finish(design, rng=None, at_once=None, score=validate, evaluate=evaluate, **evaluation):
    """Do what the plan says until it is complete and done, a few runs at a time in any order; return it."""
    validation, test, order = {}, {}, []
    for _ in range(1000):
        plan = make_plan(design, validation, test)
        missing = [run for run in plan.runs if str(run) not in validation]
        if not missing:
            assert plan.is_complete
            return plan, order
        if rng is not None:
            rng.shuffle(missing)
        for run in missing[:at_once]:
            order.append(run)
            validation[str(run)], test[str(run)] = score(run), evaluate(run, **evaluation)
    raise AssertionError("the plan has no end")


def positions(runs, label):
    return [run.setting.number for run in runs if run.method.label == label]


def test_each_method_is_confirmed_at_its_own_best_setting():
    plan, _ = finish(make_design())
    for label, best in BEST.items():
        assert abs(plan.selected[label].number - best) <= 1
        tried = [run for run in plan.selection if run.method.label == label]
        assert len({run.setting.number for run in tried}) == 9
        assert len(tried) == 9 + 3 * 2
        confirmed = [run for run in plan.confirmation if run.method.label == label]
        assert {run.setting.number for run in confirmed} == {plan.selected[label].number}
        assert [run.seed for run in confirmed] == [*range(3, 11)]
    assert plan.unsettled == []


def test_no_seed_of_the_selection_is_used_again():
    plan, _ = finish(make_design())
    assert not {run.seed for run in plan.selection} & {run.seed for run in plan.confirmation}
    assert len({run.key for run in plan.runs}) == len(plan.runs)


def test_methods_of_a_seed_are_side_by_side():
    """So that an interrupted confirmation has pairs."""
    plan, _ = finish(make_design())
    assert [run.method.label for run in plan.confirmation[:6]] == ["none", "gc", "znorm"] * 2


@pytest.mark.parametrize("at_once", [1, 2, 7])
@pytest.mark.parametrize("width", [None, 0.004])
def test_neither_order_nor_number_of_workers_changes_the_plan(at_once, width):
    design = make_design(width=width)
    expected, _ = finish(design)
    for seed in range(3):
        plan, order = finish(design, random.Random(seed), at_once)
        assert [run.key for run in plan.runs] == [run.key for run in expected.runs]
        assert {run.key for run in order} == {run.key for run in expected.runs}


def test_what_is_known_only_grows():
    design, validation, test = make_design(width=0.004), {}, {}
    known = []
    while True:
        plan = make_plan(design, validation, test)
        keys = [*map(str, plan.runs)]
        assert {*known} <= {*keys}
        known = keys
        missing = [run for run in plan.runs if str(run) not in validation]
        if not missing:
            break
        validation[str(missing[0])], test[str(missing[0])] = validate(missing[0]), evaluate(missing[0])


def test_a_selection_that_ends_at_an_end_is_not_settled():
    plan, _ = finish(make_design(), score=lambda run: float(run.setting.number))
    assert plan.unsettled == ["none", "gc", "znorm"]
    plan, _ = finish(make_design(searched(high=0.1)), score=lambda run: float(run.setting.number))
    assert plan.unsettled == []


def test_listed_settings_are_all_tried_and_the_best_three_again():
    settings = [Setting(number, {"lr": 10.0**-number}) for number in range(7)]
    plan, _ = finish(make_design({method.label: Listed(settings) for method in METHODS}))
    assert sorted(positions(plan.selection, "gc")) == sorted([*range(7), *[0, 1, 2] * 2])
    assert plan.selected["gc"].number == 0
    assert plan.unsettled == ["none", "gc", "znorm"]
    inside, _ = finish(
        make_design({method.label: Listed(settings) for method in METHODS}),
        score=lambda run: -abs(run.setting.number - 3),
    )
    assert inside.unsettled == []


def test_one_setting_needs_no_selection():
    plan, _ = finish(make_design({method.label: Listed([Setting()]) for method in METHODS}))
    assert plan.selection == []
    assert len(plan.confirmation) == 3 * 8
    assert plan.unsettled == []


def test_a_method_without_any_score_is_not_confirmed():
    plan, _ = finish(make_design(), score=lambda run: math.nan if run.method.label == "gc" else validate(run))
    assert {*plan.selected} == {"none", "znorm"}
    assert {run.method.label for run in plan.confirmation} == {"none", "znorm"}
    assert len(positions(plan.selection, "gc")) == 9


@pytest.mark.parametrize("labels", [{"none"}, {"gc", "znorm"}])
def test_nothing_is_confirmed_without_the_baseline_or_another_method(labels):
    plan, _ = finish(make_design(), score=lambda run: math.nan if run.method.label in labels else validate(run))
    assert plan.confirmation == []


@pytest.mark.parametrize(("deviation", "at_least", "at_most"), [(0.001, PILOT, PILOT), (0.05, PILOT + 1, LARGEST)])
def test_a_width_fixes_the_number_of_pairs(deviation, at_least, at_most):
    plan, _ = finish(make_design(width=0.02), deviation=deviation)
    assert at_least <= len(plan.confirmation) / 3 <= at_most


def test_the_number_of_pairs_follows_from_the_first_ones():
    design = make_design(width=0.005)
    plan, _ = finish(design, deviation=0.01)
    first = [[evaluate(run, 0.01) for run in plan.confirmation[:36] if run.method is method] for method in METHODS]
    deviations = [np.std(np.subtract(values, first[0]), ddof=1) for values in first[1:]]
    # t(0.975, 11) = 2.2010
    expected = math.ceil((2.2009851601 * max(deviations) / 0.005) ** 2)
    assert len(plan.confirmation) == 3 * min(LARGEST, max(PILOT, expected))


def test_a_run_without_a_metric_leaves_the_others():
    def evaluate_all_but_one(run):
        return math.nan if run.method.label == "gc" and run.seed == 5 else evaluate(run, 0.001)

    plan, _ = finish(make_design(width=0.02), evaluate=evaluate_all_but_one)
    assert len(plan.confirmation) == 3 * PILOT
