"""The driver of `make gpu-check`: stages that fail, hang or cannot be run are told apart, and none stops the next."""

import json
import re
import sys
from pathlib import Path

import pytest

from tests.gpu.check import PYTEST, ROOT, Stage, check, list_stages
from tests.warm import run

HANG = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"


def python(source):
    return [sys.executable, "-c", source]


def test_each_stage_has_a_result_at_once(tmp_path, capsys):
    seen = "import pathlib; print(pathlib.Path('check.json').read_text())"
    stages = [
        Stage("right", python("print('fine')"), 20),
        Stage("wrong", python("print('here is why'); raise SystemExit(3)"), 20),
        Stage("hanging", python(HANG), 1),
        Stage("missing", ["no-such-program"], 20, "no `no-such-program`"),
        Stage("of the others", python(seen.replace("'check.json'", repr(str(tmp_path / "check.json")))), 20),
    ]
    assert check(stages, tmp_path, 60) == 1
    statuses = {each["stage"]: each["status"] for each in json.loads((tmp_path / "check.json").read_text())}
    assert statuses == {
        "right": "passed",
        "wrong": "FAILED (exit status 3)",
        "hanging": "TIMED OUT after 1 s",
        "missing": "left out: no `no-such-program`",
        "of the others": "passed",
    }
    assert '"missing"' in (tmp_path / "05-of-the-others.txt").read_text()
    assert "here is why" in capsys.readouterr().out


def test_what_passes_or_is_left_out_is_no_failure(tmp_path):
    stages = [Stage("right", python(""), 20), Stage("missing", ["no-such-program"], 20, "no `no-such-program`")]
    assert check(stages, tmp_path, 60) == 0


def test_no_stage_begins_when_the_time_is_over(tmp_path):
    assert check([Stage("late", python(""), 20)], tmp_path, 10) == 1
    (result,) = json.loads((tmp_path / "check.json").read_text())
    assert result["status"] == "NOT RUN: no time is left"


@pytest.mark.long
def test_every_test_for_a_gpu_is_in_a_stage(monkeypatch):
    def collect(command):
        done = run("-m", *command[2:], "--collect-only")
        assert done.returncode == 0, done.stdout + done.stderr
        return set(re.findall(r"^tests/gpu/\S.*::.*", done.stdout, re.MULTILINE))

    monkeypatch.chdir(ROOT)
    stages = [stage for stage in list_stages("out") if stage.command[: len(PYTEST)] == PYTEST]
    chosen = [collect(stage.command) for stage in stages]
    assert set().union(*chosen) == collect([*PYTEST, "tests/gpu"])
    assert sum(map(len, chosen)) == len(set().union(*chosen))


@pytest.mark.parametrize("stage", list_stages("out"), ids=lambda stage: stage.name)
def test_what_a_stage_runs_exists(stage):
    words = stage.command
    for word in words:
        if word.endswith(".py"):
            assert (ROOT / word).is_file()
    if words[: len(PYTEST)] != PYTEST and "-m" in words:
        module = words[words.index("-m") + 1]
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file() or Path(ROOT, module).is_dir()
