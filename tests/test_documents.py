"""Every code block of README and docs is executed, every command line is run or resolved."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import pytest

from lightning_znorm.compare.command import make_parser
from tests import warm

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
QUICK = ["--trainer.fast_dev_run=2", "--trainer.accelerator=cpu", "--trainer.devices=1"]
QUICK_COMPARISON = ["--compare.dry_run=true", "--trainer.accelerator=cpu"]


def blocks(language):
    for page in PAGES:
        for number, match in enumerate(BLOCK.finditer(page.read_text())):
            if match[1] == language:
                yield pytest.param(match[2], id=f"{page.name}-{number}")


# each once, by the first page that has it
COMMANDS = {
    line: f"{block.id}: {line[:50]}"
    for block in reversed([*blocks("bash")])
    for line in reversed(block.values[0].strip().splitlines())
}


def run(*command):
    return warm.run(*command, env={"PYTHONPATH": str(ROOT)})


def test_blocks_are_of_known_languages():
    languages = {match[1] for page in PAGES for match in BLOCK.finditer(page.read_text())}
    assert languages <= {"python", "bash", "text", "yaml"}


@pytest.mark.parametrize("source", list(blocks("yaml")))
def test_a_cluster_in_yaml(source):
    """The command accepts it, and the cluster its options."""
    from dask_jobqueue import SLURMCluster

    Path("slurm.yaml").write_text(source)
    command = make_parser("lightning.pytorch")(
        args=["--config=slurm.yaml", "--model=lightning.pytorch.demos.boring_classes.BoringModel"], run=False
    )
    executor = command.config.compare.executor
    assert executor.class_path == "lightning_znorm.compare.DaskExecutor"
    assert executor.init_args.cluster == f"dask_jobqueue.{SLURMCluster.__name__}"
    with SLURMCluster(**executor.init_args.options, scheduler_options={"dashboard_address": ":0"}) as cluster:
        script = cluster.job_script()
    directives = {line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")}
    assert directives >= {"-n 1", "--cpus-per-task=4", "--mem=15G", "-t 04:00:00", "--gres=gpu:1"}
    assert "--nthreads 1 " in script


@pytest.mark.slow
@pytest.mark.parametrize("source", list(blocks("python")))
def test_python(source):
    if source.startswith("# train.py"):
        Path("train.py").write_text(source)
        source = "import runpy; runpy.run_path('train.py', run_name='imported')"
    done = run("-c", source)
    assert done.returncode == 0, done.stderr


def run_all(words):
    """Run torchrun as a user does, for all nodes on this machine, whichever the command names."""
    nodes = int(words[words.index("--nnodes") + 1]) if "--nnodes" in words else 1
    programs = []
    for node in range(nodes):
        arguments = [*words[1:-1], str(ROOT / words[-1]), "--steps", "1"]
        if nodes > 1:
            arguments[arguments.index("--node-rank") + 1] = str(node)
            arguments[arguments.index("--master-port") + 1] = os.environ["MASTER_PORT"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "torch.distributed.run", *arguments]
        programs.append(subprocess.Popen(command, env=environment, stdout=PIPE, stderr=PIPE, text=True))
    outputs = [program.communicate() for program in programs]
    output, errors = ("".join(texts) for texts in zip(*outputs, strict=True))
    code = max(abs(program.returncode) for program in programs)
    return subprocess.CompletedProcess(words, code, output, errors)


def marks_of(command):
    """Trainings are long, but for those of the README."""
    trains = command.startswith("lightning-znorm ") and command != "lightning-znorm doctor"
    is_long = command.startswith("torchrun") or (trains and not COMMANDS[command].startswith("README"))
    return [pytest.mark.long] if is_long else [pytest.mark.slow]


@pytest.mark.parametrize("command", [pytest.param(line, id=COMMANDS[line], marks=marks_of(line)) for line in COMMANDS])
def test_command(command):
    words = shlex.split(command)
    if words[0] == "lightning-znorm":
        Path("examples").symlink_to(ROOT / "examples")
        quick = {"compare": QUICK_COMPARISON, "doctor": ()}.get(words[1], QUICK)
        done = run("-m", "lightning_znorm", *words[1:], *quick)
    elif words[:2] == ["python", "train.py"]:
        script = next(b.values[0] for b in blocks("python") if b.values[0].startswith("# train.py"))
        Path("train.py").write_text(script)
        done = run(*words[1:], *QUICK)
    elif words[:2] == ["python", "-m"]:
        done = run(*words[1:], "--help")
    elif words[0] == "python":
        done = run(ROOT / words[1], *words[2:], "--help")
    elif words[0] == "torchrun":
        done = run_all(words)
        assert float(re.search(r"largest difference of a weight (\S+)", done.stdout)[1]) < 1e-6
    elif words[0] == "make":
        # running `make test` in itself would not end, and test_examples.py runs the demo
        done = subprocess.run(["make", "-C", ROOT, "--dry-run", *words[1:]], capture_output=True, text=True)
    elif words[:2] == ["pip", "install"]:
        (extra,) = re.fullmatch(r"lightning-znorm\[(\w+)\]", words[2]).groups()
        assert re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
        return
    else:
        pytest.fail(f"no rule for running {command!r}")
    assert done.returncode == 0, done.stderr


def test_no_placeholder_is_left():
    for page in PAGES:
        assert "<!--" not in page.read_text(), page.name


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_argument_table_has_every_argument():
    import inspect

    from lightning_znorm import ZNorm

    card = (ROOT / "docs" / "znorm.md").read_text()
    for name in inspect.signature(ZNorm).parameters:
        assert f"`{name}`" in card
