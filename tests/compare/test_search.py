"""The search for a method's learning rate: which values come next, and which one wins."""

import math
import random

import pytest

from lightning_znorm.compare.question.search import Search


def peak(position, best, width=2.0):
    return 1 - ((position - best) / width) ** 2 / 100


def run(search, score):
    """Try values one seed each, as a comparison does; return the scores in the order of the trials."""
    scores = {}
    while positions := search.propose(scores):
        scores |= {position: [score(position)] for position in positions}
    return scores


@pytest.mark.parametrize("best", range(-9, 10))
def test_the_best_is_found_wherever_it_is(best):
    search = Search("lr", 1e-3)
    scores = run(search, lambda position: peak(position, best))
    assert len(scores) == 9
    assert abs(search.select(scores) - best) <= 1
    assert search.is_settled(search.select(scores), scores)


@pytest.mark.parametrize("best", [-40, 40])
def test_a_best_value_far_away_is_not_settled(best):
    search = Search("lr", 1e-3)
    scores = run(search, lambda position: peak(position, best))
    assert len(scores) == 9
    assert not search.is_settled(search.select(scores), scores)
    assert search.select(scores) in (min(scores), max(scores))


@pytest.mark.parametrize("limit", [-3, -6, -9])
def test_rates_that_diverge_are_left_behind(limit):
    """Above a limit nothing has a score; the best one is just below it."""
    search = Search("lr", 1.0)
    scores = run(search, lambda position: math.nan if position > limit else peak(position, 0))
    assert limit - 1 <= search.select(scores) <= limit
    assert search.is_settled(search.select(scores), scores)


def test_chance_at_all_rates_is_searched_in_both_directions():
    scores = run(Search("lr", 1.0), lambda position: 0.1)
    assert [*scores][5:] == [-8, 8, -12, 12]
    assert Search("lr", 1.0).select(scores) == 0


def test_a_plateau_is_left_at_its_middle():
    assert Search("lr", 1.0).select({-4: [0.2], -2: [0.9], 0: [0.9], 2: [0.9], 4: [0.1]}) == 0
    assert Search("lr", 1.0).select({-2: [0.9], 0: [0.9 + 1e-9]}) == -2


def test_nothing_is_selected_where_nothing_has_a_score():
    assert Search("lr", 1.0).select({0: [math.nan], 2: [math.nan, 0.5]}) is None
    assert Search("lr", 1.0).list_finalists({0: [math.nan]}) == []


def test_finalists_are_the_best_three():
    scores = {-4: [0.1], -2: [0.5], 0: [0.7], 2: [0.6], 4: [math.nan]}
    assert Search("lr", 1.0).list_finalists(scores) == [0, 2, -2]
    assert Search("lr", 1.0, finalists=9).list_finalists(scores) == [0, 2, -2, -4]


@pytest.mark.parametrize("trials", [1, 4, 5, 6, 12])
def test_no_method_gets_more_trials(trials):
    scores = run(Search("lr", 1.0, trials=trials), lambda position: peak(position, 1))
    assert len(scores) == trials


def test_a_range_is_kept():
    search = Search("lr", 1e-4, low=1e-5, high=1e-3)
    scores = run(search, lambda position: peak(position, 20))
    assert {search.low <= search.value_at(position) <= search.high for position in scores} == {True}
    assert max(scores) == 4
    # an end of the range is where the user wants it to end
    assert search.is_settled(search.select(scores), scores)


def test_a_narrow_range_has_as_many_values_as_it_holds():
    scores = run(Search("lr", 1e-4, low=9e-5, high=1.1e-4), lambda position: 0.5)
    assert [*scores] == [0]


def test_the_order_of_arrival_does_not_matter():
    shuffle = random.Random(0)
    for best in (-3, 0, 5):
        expected = run(Search("lr", 1.0), lambda position, best=best: peak(position, best))
        scores = {}
        while positions := Search("lr", 1.0).propose(scores):
            items = [*(scores | {position: [peak(position, best)] for position in positions}).items()]
            shuffle.shuffle(items)
            scores = dict(items)
        assert scores == expected


def test_values_are_three_digits():
    assert [Search("lr", 3e-4).value_at(position) for position in (-8, -1, 0, 3)] == [3e-6, 0.000169, 0.0003, 0.00169]
