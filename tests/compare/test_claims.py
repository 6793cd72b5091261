"""Several commands in one folder, on one machine and on several, whatever the file system knows of locks and clocks."""

import os
import signal
import socket
import time
from pathlib import Path

import pytest

from lightning_znorm.compare.runs import claims as module
from lightning_znorm.compare.runs.claims import COMMANDS, LOCK, Claims
from lightning_znorm.compare.runs.store import Store
from lightning_znorm.errors import ComparisonError
from tests import warm
from tests.compare.helpers import FLAGS, ROOT, compare, figures, question, read_results, read_table, wait_for

# a command on a machine of its own, with locks of the file system that reach no other one
ON_MACHINE = """
import fcntl
import socket
from lightning_znorm.__main__ import main
from lightning_znorm.compare.runs import claims

fcntl.flock = lambda *_: None
socket.gethostname = lambda: {machine!r}
claims._DURATION = 4.0
main({args!r})
"""
HOLD = ["--compare.methods=none", "--compare.confirm=[0,1]", "--model.init_args.fail=wait"]  # in the second run
CONFIGURATION = {"trainer": {"max_epochs": 2}}
QUESTION = {"pairs": 6, "width": None, "margin": 0.1, "monitor": "val_acc"}


@pytest.fixture
def machine(monkeypatch):
    """Be on a machine."""
    monkeypatch.setattr(module, "_DURATION", 1.0)
    return lambda name: monkeypatch.setattr("socket.gethostname", lambda: name)


@pytest.fixture
def two(machine):
    """The claims of a command here and of one elsewhere."""
    machine("there")
    there = Claims(Path())
    there.join()
    machine("here")
    here = Claims(Path())
    here.join()
    yield here, there
    here.leave()
    there.leave()


def start(machine, *flags):
    code = ON_MACHINE.format(machine=machine, args=["compare", *FLAGS, *flags])
    return warm.start("-c", code, env={"PYTHONPATH": str(ROOT)})


def test_a_claim_excludes_others_until_it_is_released(two):
    here, there = two
    assert there.claim("a")
    assert there.claim("a")
    assert not here.claim("a")
    assert here.claim("b")
    assert (here.list_elsewhere(), there.list_elsewhere()) == ({"a"}, {"b"})
    there.release("a")
    assert here.claim("a")
    assert [*here.find_others().values()] == [f" on the machine there (process {os.getpid()})"]
    here.leave()
    assert there.claim("a")
    assert there.claim("b")
    assert not there.find_others()
    there.leave()
    assert not [*Path().iterdir()]


def test_claims_of_a_dead_process_of_this_machine_are_free_at_once():
    code = "from lightning_znorm.compare.runs.claims import Claims; from pathlib import Path; import os\n"
    code += "claims = Claims(Path()); claims.join(); claims.claim('a'); os._exit(1)"
    assert warm.run("-c", code, env={"PYTHONPATH": str(ROOT)}).returncode == 1
    claims = Claims(Path())
    claims.join()
    assert not claims.list_elsewhere()
    assert not claims.find_others()
    assert claims.claim("a")
    claims.leave()


def test_a_command_elsewhere_lives_as_long_as_its_lease_changes_by_any_clock(two):
    here, there = two
    there.claim("a")
    lease = Path(COMMANDS, f"{there.name}.lease")
    content = lease.read_bytes()
    there.leave()
    slow = time.time() - 600  # ten minutes behind
    lease.write_bytes(content)
    Path(COMMANDS, "a.claim").write_text(there.name)
    for _ in range(8):
        os.utime(lease, (slow, slow))
        slow += 0.25
        assert here.list_elsewhere() == {"a"}
        assert not here.claim("a")
        time.sleep(0.25)
    began = time.monotonic()
    while not here.claim("a"):
        time.sleep(0.05)
    assert time.monotonic() > began + 0.5
    assert not lease.exists()


def test_a_command_that_others_took_for_dead_stops(machine):
    """As after a night in which a machine slept."""
    machine("here")
    refused = pytest.raises(ComparisonError, match=r"have taken over the runs of this one .*Run it again to take part")
    with refused, Store(Path("out").absolute()).open({}) as store:
        Path("out", COMMANDS, f"{store.claims.name}.lease").unlink()
        while store.claims.is_held:
            time.sleep(0.01)
        store.claims.check()
    assert Path("out/comparison.json").exists()


def test_a_lock_that_is_never_released_is_named(two, monkeypatch):
    here, there = two
    monkeypatch.setattr(module, "_PATIENCE", 0.2)
    expected = pytest.raises(ComparisonError, match=rf"locked by another command on the machine .*delete `{LOCK}`")
    with there.lock(), expected, here.lock():
        pass


def test_a_second_command_takes_part(capsys):
    asked = question(sweep="lr=auto(0.1)").to_json()  # with an infinite bound
    with Store(Path("out")).open(CONFIGURATION) as first:
        first.write_question(asked, {})
        first.fix_threads(3)
        with Store(Path("out")).open(CONFIGURATION, retry=True) as second:
            second.write_question(asked, {})
            assert second.fix_threads(1) == 3
            second.mark_unstable(["model"])
        err = capsys.readouterr().err
        assert "Watching whether that command is alive" in err
        assert f"Taking part in the comparison that is at work on the machine {socket.gethostname()}" in err
        assert "Runs that crashed before are not repeated." in err
        assert not first.mark_unstable(["model"])
    assert not Path("out", COMMANDS).exists()


def test_a_second_command_that_asks_something_else_is_refused():
    elsewhere = pytest.raises(ValueError, match=r"another configuration is at work in the folder .* on the machine")
    differently = pytest.raises(ComparisonError, match=r"with another question \(pairs is 9 here and 6 there\)\. Wait")
    with Store(Path("out")).open(CONFIGURATION) as first:
        first.write_question(QUESTION, {})
        with elsewhere, Store(Path("out")).open({"trainer": {"max_epochs": 3}}):
            pass
        with differently, Store(Path("out")).open(CONFIGURATION) as second:
            second.write_question({**QUESTION, "pairs": 9}, {})
        assert first.read_question() == QUESTION
        first.write_question({**QUESTION, "margin": 0.2}, {})  # alone again
    assert Path("out/comparison.json").exists()


@pytest.mark.long
def test_commands_on_two_machines_share_the_runs():
    assert compare("--compare.sweep=lr=0.1,0.01") == 0
    expected, alone = read_table(), figures(read_results("out"))
    Path("out").rename("alone")
    commands = [start(name, "--compare.sweep=lr=0.1,0.01", "--compare.jobs=1") for name in ("here", "there")]
    errors = [command.communicate()[1] for command in commands]
    assert [command.returncode for command in commands] == [0, 0], errors
    assert figures(read_results("out")) == alone
    assert read_table().equals(expected)
    done = [sum("by another command" not in line for line in err.splitlines() if line[:1] == "[") for err in errors]
    assert sum(done) == len(alone)  # each run once
    assert min(done) > 0
    assert sum("Taking part in the comparison that is at work on the machine" in err for err in errors) == 1
    assert not Path("out", COMMANDS).exists()


@pytest.mark.long
def test_the_runs_of_a_command_that_died_elsewhere_are_taken_over():
    first = start("here", *HOLD)
    wait_for(first, "[1/2]")
    second = start("there", *HOLD)
    wait_for(second, "Taking part")
    before = read_results("out")
    assert len(before) == 1
    first.send_signal(signal.SIGKILL)
    first.communicate()
    Path("go").touch()
    _, err = second.communicate()
    assert second.returncode == 0, err
    results = read_results("out")
    assert len(results) == 2
    assert before.items() <= results.items()


@pytest.mark.slow
def test_ctrl_c_releases_the_runs_to_others():
    command = start("here", *HOLD)
    wait_for(command, "[1/2]")
    assert [*Path("out", COMMANDS).glob("*.claim")]
    command.send_signal(signal.SIGINT)
    command.communicate()
    assert not Path("out", COMMANDS).exists()
    assert not Path("out", LOCK).exists()


def test_whether_a_command_elsewhere_lives_is_seen_by_its_lease(two):
    here, there = two
    began = time.monotonic()
    assert [*here.watch_others()] == [there.name]
    assert time.monotonic() < began + 0.9  # a heartbeat is enough
    lease = Path(COMMANDS, f"{there.name}.lease")
    content = lease.read_bytes()
    there.leave()
    lease.write_bytes(content)
    assert not here.watch_others()
    assert not lease.exists()
