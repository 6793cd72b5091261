"""Verdicts and the answer to the question, from results that are made up."""

import re

import numpy as np
import pytest

from lightning_znorm.compare.report.inference import judge
from lightning_znorm.compare.report.layout import format_summary, format_trials
from lightning_znorm.compare.report.verdicts import answer, ask, describe_scope
from tests.compare.helpers import CLEAR, MIDDLE, answered, best_at, confirmation, find, question, selected, selection

CHANCE = [0.012, 0.031, 0.008, 0.026, 0.012, 0.021]


def sentences(tests, **changes):
    return [verdict.sentence for verdict in answered(tests, **changes)[1].verdicts]


def test_a_clear_difference():
    (sentence,) = sentences(CLEAR)
    assert re.fullmatch(
        r"`znorm` is better than `none`: 5\.7 points better in test_acc \(95% interval 5\.0 to 7\.0, 6 pairs,"
        r" p = 0\.031\)\.",
        sentence,
    )
    (worse,) = sentences({"none": CLEAR["znorm"], "znorm": CLEAR["none"]})
    assert worse.startswith("`znorm` is worse than `none`: 5.7 points worse in test_acc (95% interval -7.0")


@pytest.mark.parametrize(("shift", "word"), [(-0.5, "better"), (0.5, "worse")])
def test_where_small_is_good(shift, word):
    baseline = np.array([2.0, 2.1, 2.2, 2.05, 2.0, 1.9])
    tests = {"none": [*baseline], "znorm": [*(baseline + shift + [0, 0.02, -0.01, 0, 0, 0])]}
    (sentence,) = sentences(tests, mode="min")
    direction = "higher" if shift > 0 else "lower"
    assert sentence.startswith(f"`znorm` is {word} than `none`: 0.{502 if shift > 0 else 498} ")
    assert f"{word} ({direction}) in test_acc" in sentence


def test_no_difference_that_can_be_told():
    tests = {"none": [0.80, 0.82, 0.81, 0.8, 0.8, 0.8], "znorm": [0.83, 0.79, 0.84, 0.78, 0.8, 0.81]}
    (sentence,) = sentences(tests)
    assert sentence.startswith("`znorm` against `none` is undecided: 0.3 points better in test_acc (95% interval -")
    assert sentence.endswith("the smallest difference that matters: give `--compare.margin`.")
    asked, found = answered(tests, margin=0.005)
    deviation = np.subtract(tests["znorm"], tests["none"]).std(ddof=1)
    needed = (1.959964 + 0.841621) ** 2 * deviation**2 / 0.005**2
    (figure,) = re.findall(r"To decide a margin of 0\.5 points takes about (\d+) pairs\.$", found.verdicts[0].sentence)
    assert needed < int(figure) < 1.5 * needed
    assert answer(asked, found.verdicts) == "Whether `znorm` is better or worse is undecided."


def test_equivalence_within_a_margin():
    tests = {"none": [0.80, 0.82, 0.81, 0.80, 0.79, 0.83], "znorm": [0.801, 0.819, 0.812, 0.799, 0.79, 0.831]}
    asked, found = answered(tests, margin=0.01)
    assert found.verdicts[0].answer == "equivalent"
    assert "within the margin of 1.0 points: 0.0 points better in test_acc" in found.verdicts[0].sentence
    assert "p = 0.016 for equivalence" in found.verdicts[0].sentence
    assert format_summary(asked, found)["p (equivalence)"].tolist() == ["–", "0.016"]
    assert answer(asked, found.verdicts) == "`znorm` is equivalent to `none` within the margin."


def test_the_figures_are_those_of_the_analysis():
    tests = {"none": [0.5] * 7, "znorm": [0.5, 0.52, 0.49, 0.55, 0.53, 0.51, 0.54], "gc": [0.5, *CHANCE]}
    _, found = answered(tests, margin=0.02)
    judged = judge(
        {name: np.subtract(tests[name], tests["none"]).tolist() for name in ("znorm", "gc")}, margin=0.02, rounding=1e-6
    )
    for name, judgement in judged.items():
        row = found.summary.loc[name]
        assert row["answer"] == judgement.answer
        for column, value in {
            "difference": judgement.mean,
            "difference_low": judgement.low,
            "difference_high": judgement.high,
            "p": judgement.p,
            "p_holm": judgement.p_holm,
            "p_equivalence": judgement.p_equivalence,
            "probability": judgement.probability.value,
            "probability_low": judgement.probability.low,
            "pairs": judgement.pairs,
            "pairs_needed": judgement.pairs_needed,
        }.items():
            assert row[column] == pytest.approx(value, abs=1e-12), column


def test_methods_that_are_the_same():
    tests = {"none": [0.8] * 6, "znorm": [0.8] * 6}
    assert sentences(tests)[0].startswith(
        "`znorm` against `none` is undecided: the same in test_acc (95% interval 0.0 to"
    )
    _, found = answered(tests, margin=0.01)
    assert found.verdicts[0].answer == "equivalent"


def test_several_methods_are_corrected_for():
    tests = {
        "none": [0.5] * 7,
        **{name: [0.5 + delta for delta in [*CHANCE, 0.01]] for name in ("clip", "gc", "znorm")},
    }
    for sentence in sentences(tests):
        assert "p = 0.047 after Holm's correction for 3 comparisons" in sentence
    (alone,) = sentences({name: tests[name] for name in ("none", "znorm")})
    assert "p = 0.016)" in alone


def test_the_answers_of_several_methods_in_a_sentence():
    tests = {"none": [0.5] * 7, "clip": [0.5] * 7, "gc": [0.4, 0.6] * 3 + [0.5], "znorm": [0.6, 0.61, 0.62] * 2 + [0.7]}
    asked, found = answered(tests, margin=0.01)
    assert answer(asked, found.verdicts) == (
        "`znorm` is better than `none`; `clip` is equivalent to `none` within the margin; whether `gc` is better or"
        " worse is undecided."
    )
    assert ask(asked) == "Do clip, gc and znorm beat none?"
    assert ask(question(methods="none,znorm")) == "Does znorm beat none?"
    assert ask(question(methods="gc", confirm=1)) == "How good is gc in test_acc?"


@pytest.mark.parametrize("loser", ["none", "znorm"])
@pytest.mark.parametrize("status", ["crashed", "diverged"])
def test_a_pair_without_a_metric_leaves_nothing_decided(loser, status):
    """Leaving it out would compare the survivors."""
    asked = question(methods="none,znorm", sweep=None, confirm=8)
    results = confirmation(asked, {"none": [0.5] * 8, "znorm": [0.7] * 8})
    lost = next(content for content in results if content["method"] == loser and content["seed"] == 5)
    lost |= {"status": status, "curve": [], "test": {}}
    found = find(asked, results)
    (verdict,) = found.verdicts
    assert verdict.answer == "undecided"
    assert verdict.sentence.startswith("`znorm` against `none` is undecided, as ")
    assert f"1 run of `{loser}` has no `test_acc` ({status}): a pair needs both metrics" in verdict.sentence
    assert found.summary.loc["znorm", "p"] != found.summary.loc["znorm", "p"]


def test_a_method_without_any_metric():
    asked = question(methods="none,znorm", sweep="lr=1e-3..1e-1", confirm=6)
    lost = selection(asked, lambda run: None if run.method.label == "znorm" else best_at(0.01)(run))
    found = find(asked, lost)
    (verdict,) = found.verdicts
    assert verdict.answer == "unknown"
    assert verdict.sentence == (
        "`znorm`: none of 5 settings of `znorm` (lr=0.001 to lr=0.1) has a finite `val_acc`, so that none could be"
        " selected."
    )
    assert answer(asked, found.verdicts) == "`znorm` could not be compared."
    assert format_summary(asked, found)["selected setting"].tolist()[1] == "–"


def test_a_baseline_without_any_metric():
    asked = question(methods="none,znorm", confirm=6)
    found = find(asked, selection(asked, lambda run: None if run.method.label == "none" else best_at(0.01)(run)))
    assert found.verdicts[0].sentence.startswith("`znorm` cannot be compared with `none`: none of 3 settings of `none`")


def test_an_unfinished_selection_has_no_answer():
    asked = question(methods="none,znorm", confirm=6)
    found = find(asked, selection(asked, best_at(0.01))[:7])
    assert not found.is_finished
    assert found.verdicts[0].sentence == (
        "`znorm` against `none`: no pair is done yet; the answer comes with the last one."
    )


def test_an_unfinished_confirmation_has_no_answer_either():
    """However clear it looks: whoever looks again and again finds something sooner or later."""
    asked = question(methods="none,znorm", confirm=9)
    tests = {"none": [*CLEAR["none"]], "znorm": [*CLEAR["znorm"]]}
    found = find(asked, selection(asked, best_at(0.01)) + confirmation(asked, tests, MIDDLE))
    (verdict,) = found.verdicts
    assert verdict.answer == "unfinished"
    assert verdict.sentence.startswith("`znorm` against `none`: 6 of 9 pairs are done: so far, it is 5.7 points better")
    assert format_summary(asked, found)["answer"].tolist() == ["–", "–"]


@pytest.mark.parametrize("sweep", [None, {"lr": [0.1]}])
def test_a_verdict_at_one_shared_setting_is_not_settled_and_nothing_was_selected(sweep):
    asked = question(methods="none,znorm", sweep=sweep, confirm=6)
    found = find(asked, confirmation(asked, CLEAR, {"lr": 0.1} if sweep else None))
    assert found.verdicts[0].sentence.endswith(" Not settled, as both ran at one shared setting.")
    assert found.methods[0].startswith("All methods were trained at one shared setting; none was selected.")
    assert format_trials(asked, found) is None
    assert not [column for column in format_summary(asked, found) if "selected" in column]


def test_methods_with_a_setting_of_their_own_each_are_not_said_to_share_one():
    asked = question(methods="none,znorm", sweep={"lr": {"none": [0.1], "znorm": [0.01]}}, confirm=6)
    results = confirmation(asked, {"none": CLEAR["none"]}, {"lr": 0.1})
    found = find(asked, results + confirmation(asked, {"znorm": CLEAR["znorm"]}, {"lr": 0.01}))
    assert selected(found) == {"none": "lr=0.1", "znorm": "lr=0.01"}
    assert "shared setting" not in f"{found.verdicts[0].sentence} {describe_scope(asked)} {found.methods}"
    assert found.verdicts[0].sentence.endswith("Not settled, as no setting was selected.")


@pytest.mark.parametrize(
    ("best", "doubt"),
    [
        ({"none": 0.1, "znorm": 0.01}, "the selected setting of `none` (lr=0.1) is at an end of what was tried"),
        ({"none": 0.1, "znorm": 0.001}, "the selected setting of `none` (lr=0.1) and `znorm` (lr=0.001) is at an end"),
        ({"none": 0.01, "znorm": 0.01}, None),
    ],
)
def test_a_verdict_at_the_end_of_what_was_tried_is_not_settled(best, doubt):
    asked = question(methods="none,znorm", confirm=6)
    results = selection(asked, lambda run: best_at(best[run.method.label])(run))
    for method, values in CLEAR.items():
        results += confirmation(asked, {method: values}, {"lr": best[method]})
    found = find(asked, results)
    sentence = found.verdicts[0].sentence
    assert sentence.startswith("`znorm` is better than `none`")
    assert ("Not settled" in sentence) == (doubt is not None)
    assert doubt is None or doubt in sentence
    ends = [caveat for caveat in found.caveats if "is at an end of what was tried" in caveat]
    assert len(ends) == sum(value != 0.01 for value in best.values())


def test_methods_that_made_no_step_are_not_compared_as_if_they_had():
    asked = question(methods="none,znorm", sweep=None, confirm=6)
    found = find(asked, confirmation(asked, {"none": [0.5] * 6, "znorm": [0.5] * 6}, steps=0))
    assert "no training step was made by `none` and `znorm`" in found.verdicts[0].sentence
    assert any(caveat.startswith("Runs of `none` and `znorm` made no training step.") for caveat in found.caveats)
