"""Swept values as a user writes them, and what is to be tried of them."""

import math

import pytest

from lightning_znorm.compare.question.candidates import Listed
from lightning_znorm.compare.question.search import Crossed, Search
from lightning_znorm.compare.question.sweep import Range, find_searched_key, make_candidates, parse_sweep
from tests.compare.helpers import draft, question

LABELS = ["none", "znorm"]


@pytest.mark.parametrize(
    ("sweep", "expected"),
    [
        (None, {}),
        ("a.lr=1e-4,1e-3", {"a.lr": [1e-4, 1e-3]}),
        ("a.lr=1e-3 b=SGD,Adam", {"a.lr": [1e-3], "b": ["SGD", "Adam"]}),
        (["a=1,2", "b=true"], {"a": [1, 2], "b": [True]}),
        ("betas=[0.9, 0.99],[0.5, 0.9]", {"betas": [[0.9, 0.99], [0.5, 0.9]]}),
        ({"a": ["1e-3", 2], "b": "3,4"}, {"a": [1e-3, 2], "b": [3, 4]}),
        ("day=2024-01-01,2024-06-01 time=1:30,2:30", {"day": ["2024-01-01", "2024-06-01"], "time": ["1:30", "2:30"]}),
        ("word=no,on,true,null", {"word": ["no", "on", True, None]}),
        ("lr=auto", {"lr": Range()}),
        ("lr=auto(1e-3)", {"lr": Range(1e-3)}),
        ("lr=1e-5..0.1", {"lr": Range(None, 1e-5, 0.1)}),
        ({"lr": "auto", "depth": [20, 56]}, {"lr": Range(), "depth": [20, 56]}),
        ("lr={znorm: 1e-5..1e-3}", {"lr": {"znorm": Range(None, 1e-5, 1e-3)}}),
        (
            {"lr": {"none": [0.1, 0.2], "znorm": "auto(1e-4)"}},
            {"lr": {"none": [0.1, 0.2], "znorm": Range(1e-4)}},
        ),
        ("options={momentum: 0.9}", {"options": [{"momentum": 0.9}]}),
        ("name=auto,manual", {"name": ["auto", "manual"]}),
    ],
)
def test_sweeps(sweep, expected):
    assert parse_sweep(sweep, LABELS) == expected


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ("lr", "expected `key=values`"),
        ("lr=", "has no value for the key `lr`"),
        ("lr=1,2 lr=3", "has the key `lr` twice"),
        ("lr=1e-3,0.001", "has the value 0.001 of `lr` twice"),
        ({"lr": 3}, "expected a list such as"),
        ("l r=1", "expected `key=values`"),
        ("lr=1e-3..1e-5", "ends before it begins"),
        ("lr=0..1", "expected a positive number"),
        ("lr=auto(fast)", "has 'fast' for the key `lr`; expected a positive number"),
        ("lr=auto(-1)", "expected a positive number"),
        ("lr=auto decay=auto", "searches lr, decay. Search one"),
        ({"lr": {"none": [0.1], "znrom": [0.2]}}, "for none, znrom, but the methods are none, znorm"),
    ],
)
def test_wrong_sweeps(sweep, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        parse_sweep(sweep, LABELS)


def test_what_is_searched():
    assert find_searched_key(parse_sweep("depth=1,2 lr=auto")) == "lr"
    assert find_searched_key(parse_sweep("depth=1,2")) is None


def test_a_search_starts_at_what_was_given_or_configured_or_the_middle():
    configured = {"lr": 0.02}
    starts = {
        text: make_candidates(parse_sweep(f"lr={text}"), "none", configured, 9).start
        for text in ("auto", "auto(0.5)", "1e-4..1e-2")
    }
    assert starts == {"auto": 0.02, "auto(0.5)": 0.5, "1e-4..1e-2": 1e-3}
    with pytest.raises(ValueError, match=r"no positive number in the configuration.*`rate=auto\(1e-3\)`"):
        make_candidates(parse_sweep("rate=auto"), "none", configured, 9)


def test_a_range_is_not_left():
    search = make_candidates(parse_sweep("lr=1e-4..1e-2"), "none", {}, 9)
    tried = {}
    while positions := search.propose(tried):
        tried |= {position: [float(position)] for position in positions}
    values = [search.value_at(position) for position in tried]
    assert (min(values), max(values)) == (1e-4, 1e-2)
    assert search.is_settled(max(tried), tried)  # nothing beyond is allowed


def test_methods_have_ranges_of_their_own():
    sweep = parse_sweep("lr={znorm: 1e-5..1e-3}", LABELS)
    configured = {"lr": 0.1}
    none, znorm = (make_candidates(sweep, label, configured, 9) for label in LABELS)
    assert (none.start, none.high, none.trials) == (0.1, math.inf, 9)
    assert (znorm.start, znorm.low, znorm.high, znorm.trials) == (1e-4, 1e-5, 1e-3, 9)


def test_lists_are_combined_and_each_combination_is_searched():
    listed = make_candidates(parse_sweep("lr=0.1,0.2 depth=1,2"), "none", {}, 9)
    assert isinstance(listed, Listed)
    assert [str(setting) for setting in listed.settings] == [
        *("lr=0.1, depth=1", "lr=0.1, depth=2", "lr=0.2, depth=1", "lr=0.2, depth=2")
    ]
    one = make_candidates(parse_sweep("lr=auto(0.1) depth=1"), "none", {}, 9)
    assert isinstance(one, Search)
    assert str(one.first) == "depth=1, lr=0.1"
    crossed = make_candidates(parse_sweep("lr=auto(0.1) depth=1,2"), "none", {}, 5)
    assert isinstance(crossed, Crossed)
    assert crossed.count_runs() == 2 * 5 + 3 * 2


def test_searches_that_are_crossed_do_not_mix():
    """Each goes its own way: here, with depth 1 small rates are best, with depth 2 large ones, which are better."""
    crossed = make_candidates(parse_sweep("lr=auto(0.1) depth=1,2"), "none", {}, 9)
    scores = {}
    while positions := crossed.propose(scores):
        for position in positions:
            values = crossed.setting_at(position).values
            scores[position] = [math.log10(values["lr"]) * (2 if values["depth"] == 2 else -0.5)]
    assert len(scores) == 18
    tried = {depth: {} for depth in (1, 2)}
    for position, (score,) in scores.items():
        values = crossed.setting_at(position).values
        tried[values["depth"]][values["lr"]] = score
    assert min(tried[1]) <= 1e-4 < 1e-2 <= min(tried[2])
    best = crossed.select(scores)
    assert crossed.setting_at(best).values == {"depth": 2, "lr": max(tried[2])}
    assert not crossed.is_settled(best, scores)
    assert [crossed.setting_at(position).number for position in scores] == [*scores]


def test_each_method_gets_equally_many_trials():
    design = question(sweep="lr={znorm: 1e-5..1e-1}", configured={"lr": 0.1}, trials=7).design
    assert {candidates.count_runs() for candidates in design.candidates.values()} == {7 + 3 * 2}


CONFIGURED = {"model.init_args.lr": 0.1, "model.init_args.width": 4, "data.init_args.lr": 2.0, "model.lr_decay": 1.0}


@pytest.mark.parametrize(
    ("configured", "key"),
    [
        (CONFIGURED, "model.init_args.lr"),
        ({"optimizer.init_args.lr": 0.1, "model.init_args.lr": None}, "optimizer.init_args.lr"),
        ({"model.init_args.optimizer.init_args.learning_rate": 1}, "model.init_args.optimizer.init_args.learning_rate"),
        ({"lr": 0.1}, "lr"),
        ({"learning_rate": 0.1}, "learning_rate"),
    ],
)
@pytest.mark.parametrize("sweep", ["auto", "lr=auto", "lr=0.1,0.2"])
def test_lr_stands_for_the_key_of_the_learning_rate(configured, key, sweep):
    found = draft(sweep=sweep, configured=configured)
    assert found.question.keys == [key]
    probes = found.list_probes()
    assert [*probes] == ([] if sweep == "lr=0.1,0.2" else [key])
    for run in probes.values():
        start = found.list_first_runs()[0].setting.values[key]
        assert run.setting.values[key] == pytest.approx(start * 10**0.5, rel=1e-2)


def test_no_key_of_a_learning_rate():
    assert draft(sweep="auto", configured={"model.rate": 0.1}).question.keys == []
    with pytest.raises(ValueError, match="no `lr` or `learning_rate` with a positive number"):
        draft(sweep="lr=auto", configured={"model.rate": 0.1})


def test_a_key_that_does_not_exist_and_one_without_init_args():
    with pytest.raises(ValueError, match=r"there is no `model.init_args.lrr`.*Did you mean 'model.init_args.lr'"):
        draft(sweep="model.init_args.lrr=auto", configured=CONFIGURED)
    short = draft(sweep="model.lr=auto", configured=CONFIGURED).question
    assert short.design.candidates["none"].start == 0.1


def test_an_argument_without_a_default_needs_a_start():
    assert draft(sweep="auto", configured={"lr": None}).question.keys == []
    assert draft(sweep={"lr": "auto(0.1)"}, configured={"lr": None}).question.keys == ["lr"]
    assert draft(sweep={"lr": [0.1, 0.2]}, configured={"lr": None}).question.keys == ["lr"]
    with pytest.raises(ValueError, match=r"`lr=auto\(1e-3\)`"):
        draft(sweep={"lr": "auto"}, configured={"lr": None})


def test_of_several_keys_one_is_taken_after_a_trial_of_each():
    configured = {"model.generator.lr": 0.1, "model.discriminator.lr": 0.2}
    found = draft(sweep="lr=auto depth=1,2", configured=configured)
    assert not found.is_settled
    assert {key: dict(run.setting.values) for key, run in found.list_probes().items()} == {
        "model.generator.lr": {"depth": 1, "model.generator.lr": 0.316},
        "model.discriminator.lr": {"depth": 1, "model.discriminator.lr": 0.632},
    }
    settled = found.settle("model.discriminator.lr").question
    assert settled.keys == ["model.discriminator.lr", "depth"]
    assert settled.design.candidates["none"].first.values == {"depth": 1, "model.discriminator.lr": 0.2}
    assert found.settle(None).question.keys == ["depth"]


def test_the_rate_is_looked_for_with_a_method_that_searches_it():
    sweep = {"lr": {"none": ["slow", "fast"], "clip": [0.1, 0.2], "znorm": "auto(0.01)"}}
    ((key, run),) = draft(sweep=sweep).list_probes().items()
    assert (key, str(run)) == ("lr", "znorm, lr=0.0316, seed 0")


def test_what_was_found_before_is_not_looked_for_again():
    configured = {"model.generator.lr": 0.1, "model.discriminator.lr": 0.2}
    found = draft(sweep="auto", configured=configured)
    again = found.recall(["model.generator.lr"])
    assert again.is_certain
    assert again.question.keys == ["model.generator.lr"]
    assert found.recall([]).question.keys == []
    assert not found.recall(["other"]).is_settled
    single = draft(sweep="auto", configured=CONFIGURED)
    assert not single.is_certain
    assert single.recall(["model.init_args.lr"]).is_certain
    assert single.recall([]).question.keys == []
    listed = draft(sweep="depth=1,2").recall(["model.init_args.lr"])
    assert listed.question.keys == ["depth"]
