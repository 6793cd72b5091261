"""When a command or a run is killed, nothing that it has started goes on: no run, no loader, no program."""

import signal
import time
from pathlib import Path

import psutil
import pytest

from tests import warm
from tests.compare.helpers import FLAGS, ODD, ROOT, TWO

COMMAND = ["-m", "lightning_znorm", "compare", *FLAGS, f"--model={ODD}.Children"]
COMMAND += [f"--data={ODD}.Working", "--compare.methods=znorm", TWO, "--model.init_args.pause=0.05"]


def start():
    Path("notes").mkdir()
    return warm.start(*COMMAND, env={"PYTHONPATH": str(ROOT), "NOTES": str(Path("notes").absolute())})


def noted(kind):
    return [int(path.name.partition("-")[2]) for path in Path("notes").glob(f"{kind}-*")]


def wait_for_training(process, runs):
    while len(noted("training")) < runs or not noted("worker"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    return [psutil.Process(pid) for pid in noted("training")]


def assert_gone(kinds):
    alive = [psutil.Process(pid) for kind in kinds for pid in noted(kind) if psutil.pid_exists(pid)]
    _, alive = psutil.wait_procs(alive, timeout=300)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", [signal.SIGKILL, *(pytest.param(how, marks=pytest.mark.long) for how in (signal.SIGINT, signal.SIGTERM))]
)
def test_the_command_is_ended(how):
    process = start()
    wait_for_training(process, runs=2)
    assert len(noted("worker")) >= 4
    others = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(how)
    process.communicate()
    assert_gone(["run", "program", "worker", "training"])
    _, alive = psutil.wait_procs(others, timeout=300)
    assert not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
def test_a_run_is_killed():
    """The other one goes on, and the command reports both."""
    process = start()
    run = wait_for_training(process, runs=2)[0]
    family = [run, *run.children(recursive=True)]
    assert len(family) >= 4  # the run, the program, two loaders
    run.kill()
    _, alive = psutil.wait_procs(family, timeout=300)
    assert not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert "crashed: The process ended by signal 9" in err
    assert "[2/2]" in err
    # nor does a run that ends by itself leave its program behind
    assert_gone(["run", "program", "worker", "training"])
