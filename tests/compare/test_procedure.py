"""What the report says of how the runs were made, from results that are made up."""

import pytest

from lightning_znorm.compare.report.layout import format_summary
from tests.compare.helpers import find, question, result

SEEDS = range(3, 9)  # of six pairs


def hashes(*epochs):
    """Of batches and random numbers, an entry per epoch."""
    return [{"batches": batches, "random": random} for batches, random in epochs]


def test_early_stopping_is_told_and_is_no_difference_of_the_batches():
    full = hashes(*((f"b{epoch}", f"r{epoch}") for epoch in range(4)))
    results = []
    for seed in SEEDS:
        early = {"steps": 4, "ended": "early stopping (EarlyStopping)", "stopped_early": True, "batches_hash": "b0"}
        results.append(result("none", seed, epoch_hashes=full[:1], **early))
        results.append(result("znorm", seed, epoch_hashes=full, steps=16, batches_hash="b3"))
    asked = question(methods="none,znorm", sweep=None, confirm=6)
    found = find(asked, results)
    assert found.caveats == [
        "Runs of the confirmation that stopped early: 6 of `none`.",
        "Not trained equally long: `none` for 4 steps (EarlyStopping) and `znorm` for 16 steps (max_epochs). A"
        " difference may come from that alone.",
    ]
    assert found.runs["ended"].tolist() == ["early stopping (EarlyStopping)", "max_epochs"] * 6
    assert found.runs["steps"].tolist() == [4, 16] * 6
    assert format_summary(asked, found)["steps"].tolist() == ["4 steps (EarlyStopping)", "16 steps (max_epochs)"]
    results[0]["steps"] = 6
    assert "`none` for 4 to 6 steps (EarlyStopping)" in find(asked, results).caveats[1]


def test_older_results_of_other_lengths_are_not_compared_by_their_batches():
    results = [result("none", 3, batches_hash="x", steps=4, ended=None), result("znorm", 3, ended=None)]
    found = find(question(methods="none,znorm", sweep=None, confirm=6), results)
    assert not [caveat for caveat in found.caveats if "batches" in caveat]
    assert "Whether they shared the batches and the random numbers was not checked." in found.methods[1]


def test_the_epoch_and_the_method_of_other_batches_and_random_numbers_are_named():
    same = hashes(("a", "1"), ("b", "2"), ("c", "3"))
    results = []
    for seed in range(3, 10):
        results.append(result("none", seed, epoch_hashes=same))
        results.append(result("clip", seed, epoch_hashes=hashes(("a", "1"), ("b", "9"), ("d", "9"))))
        results.append(result("znorm", seed, epoch_hashes=same))
    found = find(question(methods="none,clip,znorm", sweep=None, confirm=7), results)
    assert found.caveats == [
        "The batches differ between methods in 7 of 7 cases (first: seed 3): `clip` against `none`, from epoch 3 on.",
        "The random numbers differ between methods in 7 of 7 cases (first: seed 3):"
        " `clip` against `none`, from epoch 2 on. Most likely a callback of the method draws random numbers; dropout"
        " masks and random augmentation differ from then on.",
    ]
    assert (
        "also shared the initial weights. They did not all share the batches and the random numbers"
        in (found.methods[1])
    )


def test_other_batches_in_an_epoch_that_was_not_completed():
    same = hashes(("a", "1"))
    results = [result(m, 3, epoch_hashes=same, batches_hash=m) for m in ("none", "znorm")]
    found = find(question(methods="none,znorm", sweep=None, confirm=6), results)
    assert any("The batches differ between methods in 1 of 1 cases" in caveat for caveat in found.caveats)


def test_what_was_shared_is_claimed_as_far_as_hashes_say():
    asked = question(methods="none,znorm", sweep=None, confirm=6)
    same = hashes(("a", "1"))
    found = find(asked, [result(method, 3, epoch_hashes=same) for method in ("none", "znorm")])
    assert (
        "The methods share their seeds. According to hashes, the finished runs also shared the initial weights, the"
        " first two batches of each epoch that they have in common and the states of all random number generators at"
        " each epoch's end."
    ) in found.methods[1]
    assert "not" not in found.methods[1].partition("The methods share")[2]
    found = find(asked, [result(method, 3, weights_hash=name) for method, name in (("none", ""), ("znorm", "w"))])
    assert "Whether they shared the initial weights and the random numbers was not checked." in found.methods[1]
    assert not [caveat for caveat in found.caveats if "weights" in caveat]


def rows(*values):
    """A curve; without the monitor where there is no value."""
    return [
        {
            "epoch": number,
            "step": 8 * number,
            "metrics": {"val_loss": 1.0} | ({} if value == "" else {"val_acc": value}),
        }
        for number, value in enumerate(values, start=1)
    ]


def test_a_monitor_that_comes_late_or_is_stale_at_the_end_is_told():
    results = [result("none", seed) | {"curve": rows(0.1, 0.2, 0.3), "steps": 24} for seed in range(3, 6)]
    asked = question(methods="none", sweep=None, confirm=3)
    assert not find(asked, results).caveats
    results[1]["curve"] = rows("", 0.7, "")
    found = find(asked, results)
    assert found.runs["validation"].tolist() == [0.3, 0.7, 0.3]
    assert found.runs["status"].tolist() == ["finished"] * 3
    assert found.caveats == [
        "`val_acc` was not logged in the last validation of 1 of 3 runs, so that an older value is used (for example"
        " `none`, seed 4: from step 16 of 24).",
        "`val_acc` was not logged in the first validation of 1 of 3 runs (for example `none`, seed 4: from step 16"
        " on).",
    ]


def test_a_monitor_that_was_never_logged_was_not_measured():
    results = [
        result("none", 3),
        result("none", 4) | {"curve": rows("", "")},
        result("none", 5) | {"curve": rows(None, "")},
    ]
    found = find(question(methods="none", sweep=None, confirm=3), results)
    assert found.runs["status"].tolist() == ["finished", "not measured", "diverged"]
    assert any(
        "2 of 3 runs of `none` in the confirmation did not log the metric and diverged" in caveat
        for caveat in found.caveats
    )


@pytest.mark.parametrize("epochs", [[None] * 3, [1.0] * 3])
def test_validations_are_counted_in_steps_where_epochs_are_not_known(epochs):
    curve = [
        {"epoch": epoch, "step": step, "metrics": {"val_acc": step / 100}}
        for epoch, step in zip(epochs, (10, 20, 30), strict=True)
    ]
    asked = question(methods="none,znorm", sweep=None, confirm=6)
    found = find(asked, [result(method, seed) | {"curve": curve} for method in ("none", "znorm") for seed in SEEDS])
    assert format_summary(asked, found)["steps to none's val_acc"].tolist() == ["30", "30"]
    assert found.axis == "step"


def test_the_methods_paragraphs_say_what_was_done():
    searched = question(sweep="lr=auto(0.1)", margin=0.02, vary="data.seed", trials=7)
    selection, trainings, analysis = find(searched, [result("none", 0, {"lr": 0.1})]).methods
    assert selection.startswith("For each method, `lr` was searched with 7 values: 5 in half decades about its start")
    assert "(the seeds 0, 1 and 2)" in selection
    assert "was then trained with 8 fresh seeds that all methods share." in selection
    assert "`test_acc` on the test split" in trainings
    assert "exact two-sided sign-flip test" in analysis
    assert "differs by less than 0.02, the margin that was given before" in analysis
    assert "`data.seed` was set to the seed" in analysis
    listed = find(
        question(sweep={"lr": [1, 2], "name": ["a", "b"]}, width=0.05), [result("none", 0, {"lr": 1, "name": "a"})]
    ).methods
    assert "4 settings of `lr` and `name` were tried" in listed[0]
    assert "the deviation of the first 12 differences, for an interval of ±0.05" in listed[0]
    assert "All runs share one split of the data, and the answers are conditional on it" in listed[2]
    alone = find(question(methods="none", sweep=None, confirm=1), [result("none", 3)]).methods
    assert alone[0] == "There is one setting; none was selected. The method was trained with 1 seed."
    assert alone[2] == "The interval is Student's t over the seeds, at 95%, for one split of the data."
