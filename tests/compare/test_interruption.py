"""Whatever happens to it, a comparison loses nothing and leaves nobody behind."""

import json
import random
import signal
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest

from tests import warm
from tests.compare.helpers import FLAGS, ROOT, figures, read_results, wait_for

# ten steps of a run, so that it takes half a second on any machine
COMMAND = ["-m", "lightning_znorm", "compare", *FLAGS, "--model.init_args.pause=0.05"]
COMMAND += ["--compare.methods=znorm", "--compare.confirm=4"]
RUNS = 4
HOLD = ["--model.init_args.fail=hold", "--compare.confirm=[0,1,2]", "--compare.jobs=1"]  # the second run has no end
SEARCH = ["--compare.sweep=lr=auto", "--compare.trials=3", "--compare.confirm=1", "--trainer.max_epochs=1"]
SELECTION = 3 + 3 * 2


def start(*flags):
    return warm.start(*COMMAND, *flags, env={"PYTHONPATH": str(ROOT)})


def family(process):
    """All processes of a comparison: the server, from which the runs are forked, is a child of the command."""
    return psutil.Process(process.pid).children(recursive=True)


def assert_gone(processes):
    _, alive = psutil.wait_procs(processes, timeout=300)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("kills", "flags", "runs"),
    [
        ([0, 6], [], RUNS),
        pytest.param(
            range(10, 20),
            ["--compare.methods=none,znorm", "--compare.sweep=lr=auto", "--compare.trials=3", "--compare.confirm=6"],
            2 * (SELECTION + 6),
            marks=pytest.mark.long,
        ),
    ],
    ids=["2", "10"],
)
def test_killed_at_random_moments(kills, flags, runs):
    """Each time the same command goes on; what is done is not done again."""
    known = {}
    for kill in kills:
        generator = random.Random(kill)
        process = start(*flags)
        delay = generator.uniform(0.0, 0.8)  # too short for more than a run or two
        if generator.random() < 0.8:  # else before the runs and in the trials
            wait_for(process, " to go.")
        time.sleep(delay)
        others = family(process)
        process.kill()
        process.communicate()
        assert_gone(others)
        results = read_results("out")
        assert known.items() <= results.items(), f"a result was lost or computed again (kill {kill}, delay {delay})"
        for result in results.values():
            assert result["status"] == "finished", (kill, result["error"])
        known = results
    last = start(*flags)
    out, err = last.communicate()
    assert last.returncode == 0, err
    results = read_results("out")
    assert len(results) == runs
    assert known.items() <= results.items()
    assert not flags or "is better" in out or "is worse" in out or "is undecided" in out
    assert "Unfinished" not in out
    assert not list(Path("out").rglob("*.tmp"))
    # the same as if nothing had happened
    undisturbed = start(*flags, "--compare.out=undisturbed")
    _, err = undisturbed.communicate()
    assert undisturbed.returncode == 0, err
    assert figures(read_results("undisturbed")) == figures(results)


@pytest.mark.long
def test_a_selection_goes_on_with_the_same_plan():
    """Also with other runs side by side, and where only the folder knows the key of the learning rate."""
    process = start(*SEARCH)
    wait_for(process, "[2/10]")
    others = family(process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130, err
    assert_gone(others)
    before = read_results("out")
    assert 2 <= len(before) < SELECTION
    assert f"{len(before)} of 10 runs are done. Run the same command again to resume." in err
    assert f"Unfinished: {len(before)} of at least 10 runs are done." in out
    assert {result["setting"]["model.init_args.lr"] for result in before.values()} <= {0.0316, 0.1, 0.316}
    again = start(*SEARCH, "--compare.jobs=3")
    _, err = again.communicate()
    assert again.returncode == 0, err
    assert f"{len(before)} of them done" in err
    results = read_results("out")
    assert before.items() <= results.items()
    assert len(results) == 10
    undisturbed = start(*SEARCH, "--compare.out=undisturbed")
    _, err = undisturbed.communicate()
    assert undisturbed.returncode == 0, err
    assert figures(read_results("undisturbed")) == figures(results)
    selection = [result for result in results.values() if result["seed"] < 3]
    assert len(selection) == SELECTION
    (confirmed,) = {result["setting"]["model.init_args.lr"] for result in results.values() if result["seed"] >= 3}
    assert confirmed in {result["setting"]["model.init_args.lr"] for result in selection}


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_a_polite_interruption_reports_what_is_there(how):
    process = start(*HOLD)
    wait_for(process, "[1/3]")
    others = family(process)
    if how == signal.SIGINT:  # as a terminal does it: to all of them
        for each in others:
            each.send_signal(how)
    process.send_signal(how)
    out, err = process.communicate()
    assert process.returncode == 130, err
    assert "1 of 3 runs are done. Run the same command again to resume." in err
    assert "Traceback" not in err
    assert_gone(others)
    done = read_results("out")
    assert [result["seed"] for result in done.values()] == [0]
    assert "Unfinished: 1 of 3 runs are done" in out
    assert Path("out/report.html").exists()
    assert all(result["status"] == "finished" for result in done.values())


@pytest.mark.slow
def test_an_unfinished_comparison_of_two_gives_no_answer_yet():
    pairs = ["--compare.methods=none,znorm", "--compare.confirm=[0,2,3,4,5,1]"]
    process = start("--model.init_args.fail=hold", "--model.init_args.pause=0", *pairs)
    wait_for(process, "[10/12]")  # the last pair has no end
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130, err
    assert "For `znorm` the runs are not finished." in out
    assert "`znorm` against `none`: 5 of 6 pairs are done: so far, it is" in out
    assert "; the answer comes with the last one." in out
    summary = pd.read_csv("out/summary.csv").set_index("method")
    assert pd.isna(summary.loc["znorm", "answer"])
    assert summary.loc["znorm", "pairs"] == 5


@pytest.mark.long
def test_in_pieces():
    """Each command does what its time allows, the last one finishes, and the results are those of one command."""
    pieces = 0
    while len(read_results("out")) < RUNS:
        # the first is too short for all of the runs, and a later one long enough for one on any machine
        process = start(f"--compare.minutes={0.05 * 1.5**pieces}", "--model.init_args.pause=0.2")
        out, err = process.communicate()
        assert "Traceback" not in err
        pieces += 1
        done = len(read_results("out"))
        if done < RUNS:
            assert process.returncode == 130, err
            assert f"Time is up: {done} of {RUNS} runs are done." in err
            assert done == 0 or f"Unfinished: {done} of {RUNS} runs are done" in out
    assert process.returncode == 0
    assert pieces > 1


@pytest.mark.slow
def test_a_piece_too_small_for_a_run():
    process = start("--compare.minutes=0.03", "--model.init_args.pause=30")
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert f"Time is up: 0 of {RUNS} runs are done. None was finished: 0.03 minutes are too few." in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_an_interrupted_trial_leaves_no_report():
    process = start("--model.init_args.pause=1000")
    wait_for(process, "Trying")
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert not out
    assert json.loads(Path("out/comparison.json").read_text())["schema"] == 2
