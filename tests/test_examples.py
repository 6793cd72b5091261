"""The demo and the learning-rate sweep as a user starts them, on a few batches."""

import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

ROOT = Path(__file__).parents[1]


def run(script, *args, env=None):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
    command = [sys.executable, ROOT / "examples" / script, *args]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=280, env=environment)


def size_of_png(path):
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", header[16:24])


@pytest.mark.slow
def test_demo():
    done = run("demo.py", "--epochs=2", "--batches=2", "--out=out")
    assert done.returncode == 0, done.stderr
    summary = Path("out/summary.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in summary.splitlines() if line.startswith("|")]
    assert rows[0] == ["data", "method", "metric", "epoch 1", "epoch 2", "final (test)", "seconds"]
    assert [row[1] for row in rows[2:]] == ["Adam", "Adam + ZNorm"] * 2
    for row in rows[2:]:
        assert all(0 <= float(value) <= 1 for value in row[3:6])
        assert float(row[6]) > 0
    width, height = size_of_png(Path("out/curves.png"))
    assert width > 1000
    assert height > 600
    assert re.search(r"data +method +metric +epoch 1", done.stdout)
    assert done.stdout.strip().splitlines()[-1].strip().endswith("Trainer(..., callbacks=[ZNorm()])")
    assert not Path("lightning_logs").exists()


@pytest.mark.slow
def test_demo_runs_are_reproducible_and_differ_by_the_method_alone():
    tables = []
    for out in ("one", "two"):
        assert run("demo.py", "--tasks=digits", "--epochs=1", "--batches=3", f"--out={out}").returncode == 0
        summary = Path(out, "summary.md").read_text()
        rows = [line.split("|") for line in summary.splitlines() if line.startswith("| Hand")]
        tables.append([row[4:-2] for row in rows])  # without the seconds
    assert tables[0] == tables[1]
    adam, znorm = tables[0]
    assert adam != znorm


@pytest.mark.slow
def test_learning_rate_sweep_goes_on_where_it_was():
    arguments = ("--rates", "0.1", "0.001", "--seeds=1", "--epochs=1", "--batches=1", "--out=out")
    done = run("learning_rate.py", *arguments)
    assert done.returncode == 0, done.stderr
    frame = pd.read_csv("out/runs.csv")
    assert len(frame) == 4
    assert set(frame["method"]) == {"SGD", "SGD + ZNorm"}
    size_of_png(Path("out/accuracy.png"))
    frame.iloc[:3].to_csv("out/runs.csv", index=False)
    again = run("learning_rate.py", *arguments)
    assert "[1/1] SGD + ZNorm, lr 0.001, seed 0" in again.stdout
    other = run("learning_rate.py", *arguments[:-1], "--out=out", "--batches=2")
    assert "[1/4]" in other.stdout  # shorter runs do not stand in for longer ones


@pytest.mark.slow
@pytest.mark.parametrize("flags", [["--no_znorm"], [], ["--amp"], ["--closure"]], ids=str)
def test_plain_pytorch(flags):
    done = run("plain_pytorch.py", "--epochs=8", *flags)
    assert done.returncode == 0, done.stderr
    accuracy = float(done.stdout.strip().rpartition(" ")[2])
    # this network learns slowly at this rate without ZNorm
    assert 0.2 < accuracy < 0.8 if flags == ["--no_znorm"] else accuracy > 0.85


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--devices=2", "--strategy=ddp_spawn"], ["--precision=bf16-true"]], ids=str)
def test_fabric(flags):
    done = run("fabric.py", "--epochs=8", "--accelerator=cpu", *flags)
    assert done.returncode == 0, done.stderr
    (last,) = [line for line in done.stdout.splitlines() if line.startswith("epoch 8")]
    accuracy, steps, skipped = re.fullmatch(r"epoch 8: accuracy (.*), (\d+) steps, (\d+) skipped", last).groups()
    assert float(accuracy) > 0.85
    assert (int(steps), int(skipped)) == (192, 0)


@pytest.mark.slow
def test_learning_rate_finder():
    done = run("learning_rate_finder.py", "--steps=12", "--out=out")
    assert done.returncode == 0, done.stderr
    frame = pd.read_csv("out/suggestions.csv")
    assert list(frame["method"]) == ["SGD", "SGD + ZNorm", "Adam", "Adam + ZNorm"]
    rates = frame.set_index("method")["rate of the lowest loss"]
    assert rates["SGD"] > 5 * rates["SGD + ZNorm"]
    size_of_png(Path("out/curves.png"))
    assert not list(Path().glob("*.ckpt"))


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--no_znorm"]], ids=str)
def test_gradient_monitor(flags):
    done = run("gradient_monitor.py", "--epochs=1", "--batches=3", "--out=out", *flags)
    assert done.returncode == 0, done.stderr
    width, height = size_of_png(Path("out/gradients.png"))
    assert height > 400
    assert width > 1000 if not flags else width < 1000  # two panels, or one
    assert done.stdout.strip().splitlines()[-1].endswith("gradients.png")


def test_configurations_name_what_the_demo_says():
    for name in ("digits", "brain_mri"):
        config = yaml.safe_load((ROOT / "examples" / f"{name}.yaml").read_text())
        assert config["model"]["init_args"]["optimizer"] == "Adam"
        assert "znorm" not in config
