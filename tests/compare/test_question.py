"""Numbers of pairs and their seeds, and a question that survives its file."""

import json

import pytest

from lightning_znorm.compare.question.question import Question
from lightning_znorm.compare.runs.result import RunResult
from lightning_znorm.compare.runs.schedule import Schedule, measure
from tests.compare.helpers import confirmation, question, result, selection


@pytest.mark.parametrize(
    ("methods", "confirm", "seeds", "fresh"),
    [
        ("none,znorm", None, [0, 1, 2], range(3, 11)),
        ("none,znorm", 6, [0, 1, 2], range(3, 9)),
        ("none", 1, [0, 1, 2], [3]),
        ("none", [7], [0, 1, 2], [7]),
        ("none,znorm", [0, 1, 2, 4, 5, 9], [3, 6, 7], [0, 1, 2, 4, 5, 9]),
        # 2 / 2^8 times the seven comparisons is more than 0.05
        ("none,znorm,gc,clip,scale,znorm(eps=1),znorm(eps=2),znorm(eps=3)", None, [0, 1, 2], range(3, 12)),
    ],
)
def test_the_seeds_of_the_stages_are_not_the_same(methods, confirm, seeds, fresh):
    design = question(methods=methods, confirm=confirm).design
    assert [*design.seeds] == seeds
    assert [*design.fresh_seeds] == [*fresh]
    assert design.pairs == len(fresh)


def test_a_width_makes_at_least_twelve_pairs():
    design = question(width=0.01).design
    assert design.least_pairs == 12
    assert len(design.fresh_seeds) == 48


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"confirm": 0}, "Expected argument `confirm` to be an integer of at least 1"),
        ({"confirm": []}, "argument `confirm` to be a number or a list of different seeds"),
        ({"confirm": [1, 1]}, "argument `confirm`"),
        ({"confirm": [-3]}, "argument `confirm`"),
        ({"methods": "none,znorm", "confirm": 5}, "asks for 5 pairs.* 1 comparisons at 5% can show.*6 or more"),
        ({"confirm": 6}, "asks for 6 pairs.* 2 comparisons .*7 or more"),
        ({"width": 0}, "Expected argument `width` to be a positive number"),
        ({"width": -1.0}, "argument `width`"),
        ({"margin": 0}, "Expected argument `margin` to be a positive number, but got 0"),
        ({"margin": float("nan")}, "argument `margin`"),
        ({"width": 0.1, "confirm": 8}, "`confirm` and `width` exclude each other"),
        ({"trials": 0}, "Expected argument `trials` to be an integer of at least 1"),
    ],
)
def test_wrong_numbers(changes, message):
    with pytest.raises(ValueError, match=message):
        question(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"sweep": None},
        {"sweep": {"lr": [0.1, 0.2], "name": ["SGD", "Adam"]}},
        {"sweep": "lr=auto(0.1)", "margin": 0.02, "vary": "data.seed"},
        {"sweep": "lr={znorm: 1e-4..1e-2, clip: auto(0.1)} depth=1,2", "configured": {"lr": 0.5}, "width": 0.1},
    ],
)
def test_a_question_survives_its_file(changes):
    asked = question(**changes)
    content = json.loads(json.dumps(asked.to_json()).replace("Infinity", "null"))
    again = Question.from_json(content)
    assert again.to_json() == asked.to_json()
    results = selection(asked, lambda run: 0.5 + run.setting.number % 7 / 100)
    known = {content["name"] for content in results}
    assert {str(run) for run in Schedule(again).update().runs} <= known or not known
    assert [str(run) for run in again.list_first_runs()] == [str(run) for run in asked.list_first_runs()]


def test_runs_follow_from_results():
    asked = question(methods="none,znorm", sweep="lr=auto(0.1)", confirm=6)
    schedule = Schedule(asked)
    first = schedule.list_missing()
    assert len(first) == 10
    assert {run.seed for run in first} == {0}
    assert [run.method.label for run in first[:4]] == ["none", "znorm"] * 2
    assert not schedule.is_done()
    assert (schedule.count_done(), schedule.count_runs()) == (0, 2 * (9 + 6) + 2 * 6)
    results = {content["name"]: content for content in selection(asked, lambda run: -abs(run.setting.number - 1) / 10)}
    done = [RunResult.from_json(run, results[str(run)]) for run in first]
    schedule.add(*done[:5])
    assert schedule.list_missing() == first[5:]
    schedule.add(*done[5:])
    following = schedule.list_missing()
    assert following
    assert not {*map(str, following)} & {*map(str, first)}


def test_what_is_there_is_loaded_and_not_made_again():
    asked = question(methods="none,znorm", sweep={"lr": [0.1, 0.01, 0.001]}, confirm=6)
    contents = selection(asked, lambda run: 0.5 + (run.setting.number == 1) / 10)
    assert len(contents) == 2 * 9
    contents += confirmation(asked, {"none": [0.5] * 6, "znorm": [0.6] * 4}, {"lr": 0.01})
    by_name = {content["name"]: content for content in contents}
    schedule = Schedule(asked)
    loaded = schedule.load(lambda run: RunResult.from_json(run, by_name.get(str(run))))
    assert len(loaded) == len(contents)
    assert {*map(str, schedule.list_missing())} == {"znorm, lr=0.01, seed 7", "znorm, lr=0.01, seed 8"}
    assert not schedule.is_done()


@pytest.mark.parametrize(
    ("mode", "status", "value", "expected"),
    [
        ("max", "finished", 0.5, 0.5),
        ("min", "finished", 0.5, -0.5),
        ("max", "diverged", 0.1, 0.1),  # counts with the metric of its last weights
        ("max", "finished", None, float("nan")),
        ("max", "crashed", 0.5, float("nan")),
    ],
)
def test_the_metric_of_a_run(mode, status, value, expected):
    asked = question(methods="none", sweep=None, mode=mode, confirm=1)
    run = asked.list_first_runs()[0]
    content = result("none", run.seed, val=value, test=value, status=status)
    assert measure(asked, RunResult.from_json(run, content)) == pytest.approx((expected, expected), nan_ok=True)
