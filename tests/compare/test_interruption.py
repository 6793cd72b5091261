"""Whatever happens to it, a comparison loses nothing and leaves nobody behind."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.compare.helpers import FLAGS, figures, read_results

ROOT = Path(__file__).parents[2]
KILLS = 10
COMMAND = [sys.executable, "-m", "lightning_znorm", "compare", *FLAGS, "--model.init_args.pause=0.02"]
COMMAND += ["--compare.methods=none,clip,gc,znorm", "--compare.sweep=model.init_args.lr=0.3,0.1,0.03"]
COMMAND += ["--compare.seeds=4"]
RUNS = 4 * 3 * 4


def start(*flags):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*COMMAND, *flags],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        # the tests may run in the background of a shell, whose processes ignore Ctrl-C, and their children with them
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


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
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_at_random_moments():
    """Each time the same command goes on; what is done is not done again."""
    generator = random.Random(time.time_ns())
    known = {}
    for _ in range(KILLS):
        process = start()
        delay = generator.uniform(0.0, 1.2)
        if generator.random() < 0.8:  # else in the middle of imports and trials
            wait_for(process, " to go.")
        else:
            delay *= 6
        time.sleep(delay)
        others = family(process)
        process.kill()
        process.communicate()
        assert_gone(others)
        results = read_results("out")
        assert known.items() <= results.items(), f"a result was lost or made anew (delay {delay})"
        for result in results.values():
            assert result["status"] == "finished", result["error"]
        known = results
    last = start("--compare.jobs=2")
    out, err = last.communicate(timeout=280)
    assert last.returncode == 0, err
    results = read_results("out")
    assert len(results) == RUNS
    assert known.items() <= results.items()
    assert "better" in out or "worse" in out or "told apart" in out
    assert not list(Path("out").rglob("*.tmp"))
    # the same as if nothing had happened
    undisturbed = start("--compare.out=undisturbed")
    _, err = undisturbed.communicate(timeout=280)
    assert undisturbed.returncode == 0, err
    assert figures(read_results("undisturbed")) == figures(results)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_polite_interruption_reports_what_is_there(how):
    process = start()
    wait_for(process, "[4/")
    others = family(process)
    if how == signal.SIGINT:  # as a terminal does it: to all of them
        for each in others:
            each.send_signal(how)
    process.send_signal(how)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "runs are done. Run the same command again to resume." in err
    assert "Traceback" not in err
    assert_gone(others)
    done = read_results("out")
    assert 4 <= len(done) < RUNS
    assert f"Unfinished: {len(done)} of {RUNS} runs are done" in out
    assert Path("out/report.html").exists()
    assert all(result["status"] == "finished" for result in done.values())


@pytest.mark.slow
def test_in_pieces():
    """Each command does what its time allows, the last one finishes, and the results are those of one command."""
    pieces = 0
    while len(read_results("out")) < RUNS:
        pieces += 1
        process = start("--compare.minutes=0.3", "--model.init_args.pause=0.03")
        out, err = process.communicate(timeout=120)
        assert "Traceback" not in err
        done = len(read_results("out"))
        if done < RUNS:
            assert process.returncode == 130, err
            assert f"Time is up: {done} of {RUNS} runs are done." in err
            assert done == 0 or f"Unfinished: {done} of {RUNS} runs are done" in out
    assert process.returncode == 0
    assert 1 < pieces < 20


@pytest.mark.slow
def test_a_piece_too_small_for_a_run():
    process = start("--compare.minutes=0.2", "--model.init_args.pause=30")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert f"Time is up: 0 of {RUNS} runs are done. None was finished: 0.2 minutes are too few." in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_an_interrupted_trial_leaves_no_report():
    process = start("--model.init_args.pause=3")
    wait_for(process, "Trying")
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert not out
    assert json.loads(Path("out/comparison.json").read_text())["schema"] == 1


@pytest.mark.slow
def test_two_commands_at_a_time():
    first = start()
    wait_for(first, "[1/")
    second = start()
    _, err = second.communicate(timeout=120)
    assert second.returncode == 2
    assert "Another comparison is at work in the folder" in err
    first.kill()
    first.communicate()
