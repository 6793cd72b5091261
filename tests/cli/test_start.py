"""What a start of the command imports and prints, in a fresh interpreter that refuses slow imports."""

import os
import pty
import subprocess
import sys

import pytest

SLOW = ("torch", "lightning", "pytorch_lightning", "jsonargparse", "pandas", "matplotlib")
PROGRAM = f"""
import runpy, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {SLOW}:
            raise SystemExit(f"imported {{name}}")

sys.meta_path.insert(0, Refuse())
runpy.run_module("lightning_znorm", run_name="__main__")
"""
LINE = "Importing Lightning ...\n"


def start(*args, **kwargs):
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **kwargs}
    return subprocess.run([sys.executable, "-c", PROGRAM, *args], text=True, check=False, **streams)


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_imports_nothing(option):
    done = start(option)
    assert (done.returncode, done.stderr) == (0, "")
    assert "  compare " in done.stdout


def test_version_imports_nothing():
    done = start("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("lightning-znorm 0")
    assert " torch 2" in done.stdout
    assert "lightning 2" in done.stdout.removeprefix("lightning-znorm")


@pytest.mark.parametrize("args", [["compre"], [], ["--foo"]])
def test_a_misspelt_command_imports_nothing(args):
    done = start(*args)
    assert done.returncode == 2
    assert done.stderr.startswith("lightning-znorm: error: ")
    assert "compare" in done.stderr


@pytest.mark.parametrize("args", [["compare"], ["--config=my.yaml", "compare"]])
def test_compare_says_at_once_that_it_imports(args):
    done = start(*args)
    assert done.stderr.startswith(f"{LINE}imported ")
    assert not done.stdout


def test_fit_says_so_on_a_terminal():
    assert start("fit").stderr.startswith("imported ")
    master, slave = pty.openpty()
    start("fit", stderr=slave)
    os.close(slave)
    assert os.read(master, 1000).decode().replace("\r", "").startswith(f"{LINE}imported ")
    os.close(master)


@pytest.mark.parametrize("option", ["--help", "-h", "--help=all"])
def test_help_is_only_help(option):
    assert start("compare", option).stderr.startswith("imported ")


def test_nothing_is_said_of_what_is_there(capsys):
    from lightning_znorm.__main__ import main

    with pytest.raises(SystemExit):
        main(["compare"])
    assert LINE not in capsys.readouterr().err


def test_what_a_stream_cannot_encode_is_replaced():
    done = start("é", env={**os.environ, "PYTHONIOENCODING": "ascii:strict"})
    assert done.returncode == 2
    assert "Unknown command '?'." in done.stderr
