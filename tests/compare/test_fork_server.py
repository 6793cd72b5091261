"""The process from which runs are forked, started before anything is imported."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
PRELOAD = """
import importlib
from lightning_znorm.fork_server import end_with_command, find_modules
end_with_command()
for name in find_modules():
    importlib.import_module(name)
"""
SCRIPT = """
import multiprocessing, sys
from multiprocessing import forkserver
from lightning_znorm import fork_server
fork_server._MODULE = "tiny_preload"

def report(sender):
    sender.send(("wave" in sys.modules, "torch" in sys.modules, "tiny_preload" in sys.modules))

if __name__ == "__main__":
    fork_server.start_early()
    print(forkserver._forkserver._forkserver_pid, flush=True)
    if sys.argv[1] == "hand in":
        fork_server.hand_in(["json", "wave"])
        fork_server.hand_in(["torch"])  # too late
        receiver, sender = multiprocessing.get_context("forkserver").Pipe(duplex=False)
        process = multiprocessing.get_context("forkserver").Process(target=report, args=(sender,))
        process.start()
        print(receiver.recv())
        process.join()
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="runs are forked on Linux only"),
]


def run(word):
    Path("tiny_preload.py").write_text(PRELOAD)
    Path("script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(Path().absolute())}
    done = subprocess.run([sys.executable, "script.py", word], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    pid, *lines = done.stdout.splitlines()
    psutil.wait_procs([psutil.Process(int(pid))] if psutil.pid_exists(int(pid)) else [], timeout=300)
    assert not psutil.pid_exists(int(pid)) or psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE
    assert not list(Path().glob("lightning-znorm-*"))
    return lines


def test_modules_that_are_handed_in_later_are_imported_before_the_first_fork():
    assert run("hand in") == ["(True, False, True)"]


def test_it_ends_with_a_command_that_fails_before():
    assert run("leave") == []
