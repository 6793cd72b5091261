"""Two commands in one folder, on one machine and on two, whatever the file system knows of locks."""

import time
from pathlib import Path

import filelock
import pytest

from lightning_znorm.compare.runs import lease as leases
from lightning_znorm.compare.runs.lease import LOCK, Lease
from lightning_znorm.compare.runs.store import Store
from lightning_znorm.errors import ComparisonError
from tests import warm
from tests.compare.helpers import FLAGS, ROOT, read_results

# a command on a machine of its own, with locks of the file system that reach no other one
ON_MACHINE = """
import fcntl
import socket
from lightning_znorm.__main__ import main

fcntl.flock = lambda *_: None
socket.gethostname = lambda: {machine!r}
main({args!r})
"""


HELD = ["--compare.methods=none", "--compare.confirm=[0,1]", "--model.init_args.fail=hold"]  # the second run, for good


@pytest.fixture
def machine(monkeypatch):
    """Be on a machine."""
    monkeypatch.setattr(leases, "_DURATION", 1.0)
    return lambda name: monkeypatch.setattr("socket.gethostname", lambda: name)


def start(machine, *flags):
    code = ON_MACHINE.format(machine=machine, args=["compare", *FLAGS, *HELD, *flags])
    return warm.start("-c", code, env={"PYTHONPATH": str(ROOT)})


@pytest.mark.long
def test_a_command_on_another_machine_is_refused_while_the_first_is_at_work():
    first = start("here")
    for line in first.stderr:
        if "[1/2]" in line:
            break
    before = read_results("out")
    second = start("there")
    _, err = second.communicate()
    assert second.returncode == 2, err
    assert f"Another comparison is at work in the folder `{Path('out').absolute()}` on the machine here (process" in err
    assert first.poll() is None
    assert read_results("out") == before
    first.kill()
    first.communicate()
    # the dead one gives no sign of life, and its results are taken over
    third = start("there", "--compare.minutes=0.02")
    _, err = third.communicate()
    assert "The folder is in use on the machine here (process" in err
    assert third.returncode == 130, err
    assert before.items() <= read_results("out").items()
    assert not Path("out", LOCK).exists()


def test_the_same_machine_is_refused_at_once(machine, capsys):
    machine("here")
    lease, other = Lease(Path()), Lease(Path())
    lease.acquire()
    with pytest.raises(ValueError, match=r"at work in the folder `\.` on the machine here \(process \d+\)\. Wait"):
        other.acquire()
    lease.release()
    assert not capsys.readouterr().err
    other.acquire()
    other.release()
    assert not Path(LOCK).exists()


def test_a_folder_that_was_taken_is_left_alone(machine):
    """As after a night in which a machine was suspended."""
    machine("here")
    refused = pytest.raises(ComparisonError, match=r"taken by another comparison on the machine there \(process \d+\)")
    with refused, Store(Path("out").absolute()).open({}) as store:
        Path("out", LOCK).unlink()
        machine("there")
        other = filelock.SoftFileLease(Path("out", LOCK).absolute(), lease_duration=1.0)
        other.acquire(timeout=0)
        while store.lease.is_held:
            time.sleep(0.01)
        store.lease.check()
    assert other.is_locked
    assert other.compromise is None
    assert Path("out/comparison.json").exists()
    other.release()
