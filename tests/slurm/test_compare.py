"""One comparison on SLURM, by Dask and by commands that share a folder: the table of the processes of one machine."""

import os
import shlex
import signal
import sys
from pathlib import Path

import pytest
import yaml

from tests import warm
from tests.compare.helpers import FLAGS, ROOT, compare, figures, read_results, read_table
from tests.compare.helpers import wait_for as wait_for_line
from tests.slurm.helpers import CLUSTER_OPTIONS, ask, find_jobs, state_of, wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("slurm")]

ASKED = ["--compare.methods=none,clip,gc,znorm", "--compare.confirm=7", "--model.init_args.pause=0.1"]
RUNS = 4 * 7
CLUSTER = {
    "class_path": "lightning_znorm.compare.DaskExecutor",
    "init_args": {
        "cluster": "dask_jobqueue.SLURMCluster",
        "workers": 2,
        "options": CLUSTER_OPTIONS,
    },
}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Table and figures of the processes of this machine."""
    here = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("pool"))
    assert compare(*ASKED) == 0
    found = read_table(), figures(read_results("out"))
    os.chdir(here)
    return found


@pytest.fixture(autouse=True)
def on_cluster(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    Path("cluster.yaml").write_text(yaml.safe_dump({"compare": {"executor": CLUSTER}}))


def check(expected):
    table, runs = expected
    assert read_table().equals(table)
    assert figures(read_results("out")) == runs
    assert len(runs) == RUNS


def start():
    return warm.start("-m", "lightning_znorm", "compare", "--config=cluster.yaml", *FLAGS, *ASKED)


def test_a_cancelled_job_costs_no_run(expected):
    command = start()
    wait_for_line(command, "[4/28]")
    before = find_jobs()
    ask("scancel", before[0])
    _, err = command.communicate()
    assert command.returncode == 0, err
    check(expected)
    wait_for(lambda: not find_jobs("running,pending,completing"))


def test_a_command_that_is_killed_goes_on_where_it_was(expected):
    command = start()
    wait_for_line(command, "[4/28]")
    command.send_signal(signal.SIGKILL)
    command.communicate()
    wait_for(lambda: not find_jobs("running,pending,completing"), seconds=60)
    before = read_results("out")
    assert 4 <= len(before) < RUNS
    command = start()
    _, err = command.communicate()
    assert command.returncode == 0, err
    assert before.items() <= read_results("out").items()
    check(expected)


def test_an_array_of_commands_shares_the_runs(expected):
    command = [sys.executable, "-m", "lightning_znorm", "compare", *FLAGS, *ASKED, "--compare.jobs=1"]
    job = ask("sbatch", "--parsable", "--array=0-2", "--output=%a.txt", f"--wrap={shlex.join(command)}")
    outputs = [Path(f"{number}.txt") for number in range(3)]
    wait_for(lambda: all(output.exists() and "[8/28]" in output.read_text() for output in outputs), seconds=120)
    ask("scancel", f"{job}_1")
    others = [f"{job}_{number}" for number in (0, 2)]
    wait_for(lambda: all(state_of(other) == "COMPLETED" for other in others), seconds=240)
    check(expected)
    lines = [line for output in outputs for line in output.read_text().splitlines() if line.startswith("[")]
    own = [line.partition(" ")[2].partition(":")[0] for line in lines if "by another command" not in line]
    assert len(own) == len({*own}), "a run was made twice"
    assert len(own) <= RUNS
