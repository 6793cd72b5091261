"""Whatever happens to it, a comparison loses nothing and leaves nobody behind."""

import json
import random
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests import warm
from tests.compare.helpers import FLAGS, ROOT, figures, read_results

# ten steps of a run, so that it takes half a second on any machine
COMMAND = ["-m", "lightning_znorm", "compare", *FLAGS, "--model.init_args.pause=0.05"]
COMMAND += ["--compare.seeds=2"]
METHODS = 2
RUNS = METHODS * 2
HOLD = "--model.init_args.fail=hold"  # no run of the second seed ends


def start(*flags):
    return warm.start(*COMMAND, *flags, env={"PYTHONPATH": str(ROOT)})


def wait_for(process, text):
    """Read the display until a line has the text."""
    for line in process.stderr:
        if text in line:
            return line
    raise AssertionError(f"{text!r} did not come")


def family(process):
    """All processes of a comparison: the server, from which the runs are forked, is a child of the command."""
    return psutil.Process(process.pid).children(recursive=True)


def assert_gone(processes):
    _, alive = psutil.wait_procs(processes, timeout=300)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("kills", "seeds"), [([0, 6], 2), pytest.param(range(10, 20), 24, marks=pytest.mark.long)], ids=["2", "10"]
)
def test_killed_at_random_moments(kills, seeds):
    """Each time the same command goes on; what is done is not done again."""
    known, runs, seeds = {}, METHODS * seeds, f"--compare.seeds={seeds}"
    for kill in kills:
        generator = random.Random(kill)
        process = start(seeds)
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
    last = start(seeds)
    out, err = last.communicate()
    assert last.returncode == 0, err
    results = read_results("out")
    assert len(results) == runs
    assert known.items() <= results.items()
    assert "better" in out or "worse" in out or "do not differ" in out or "too few to tell" in out
    assert not list(Path("out").rglob("*.tmp"))
    # the same as if nothing had happened
    undisturbed = start(seeds, "--compare.out=undisturbed")
    _, err = undisturbed.communicate()
    assert undisturbed.returncode == 0, err
    assert figures(read_results("undisturbed")) == figures(results)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_a_polite_interruption_reports_what_is_there(how):
    process = start(HOLD)
    wait_for(process, f"[{METHODS}/")
    others = family(process)
    if how == signal.SIGINT:  # as a terminal does it: to all of them
        for each in others:
            each.send_signal(how)
    process.send_signal(how)
    out, err = process.communicate()
    assert process.returncode == 130, err
    assert "runs are done. Run the same command again to resume." in err
    assert "Traceback" not in err
    assert_gone(others)
    done = read_results("out")
    assert len(done) == METHODS
    assert f"Unfinished: {METHODS} of {RUNS} runs are done" in out
    assert Path("out/report.html").exists()
    assert all(result["status"] == "finished" for result in done.values())


@pytest.mark.slow
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
    assert json.loads(Path("out/comparison.json").read_text())["schema"] == 1


@pytest.mark.slow
def test_two_commands_at_a_time():
    first = start(HOLD)
    wait_for(first, "[1/")
    second = start(HOLD)
    _, err = second.communicate()
    assert second.returncode == 2
    assert "Another comparison is at work in the folder" in err
    first.kill()
    first.communicate()
