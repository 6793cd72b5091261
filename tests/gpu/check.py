"""What `make gpu-check` runs: stages in processes of their own, each under a time-out, each with its result at once.

Run as ``python -m tests.gpu.check`` on a machine with a GPU, from the root of the project.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
PYTHON = sys.executable
PYTEST = [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=5"]
LAUNCHES = [PYTHON, "-m", "tests.gpu.launches", "--seconds", "40"]
SHORTEST = 15.0  # seconds in which a stage may still be of use
ERRORS = [PYTHON, "benchmarks/errors.py", "--device", "cuda", "--largest", "1000003"]
OVERHEAD = [PYTHON, "benchmarks/overhead.py", "--device", "cuda"]


@dataclass(frozen=True)
class Stage:
    """A command with its time-out in seconds, and why it cannot be run."""

    name: str
    command: list[str]
    limit: float
    obstacle: str | None = None
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    stage: str
    status: str
    seconds: float


def list_stages(out, gpus=1):
    """From what the others stand on to what only matters if they are right."""
    tests = "tests/gpu"
    backends = ["tests/backends/test_exactness.py", "tests/backends/test_special.py"]
    one_gpu = None if gpus > 1 else "needs two GPUs"
    rest = "not (one_tile or list or distributions or centralization)"
    # PyTorch's own memory would hide an access beyond the end of a tensor
    uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    memcheck = ["compute-sanitizer", "--error-exitcode", "86", "--tool", "memcheck"]
    few = [*LAUNCHES, "--launches", "12", "--without-broken"]
    counters = "dram__bytes_read.sum,dram__bytes_write.sum,gpu__time_duration.sum"
    profiler = ["ncu", "--clock-control", "none", "--profile-from-start", "off", "--csv", "--metrics", counters]
    return [
        Stage("doctor", [PYTHON, "-m", "lightning_znorm", "doctor"], 60),
        Stage("one tile", [*PYTEST, f"{tests}/test_exactness.py", "-k", "one_tile"], 45),
        Stage("lists", [*PYTEST, f"{tests}/test_exactness.py", "-k", "list or distributions or centralization"], 60),
        Stage("table of exactness", [*PYTEST, *backends, "-k", "triton"], 60),
        Stage("launches", LAUNCHES, 60),
        Stage("launches beside other streams", [*LAUNCHES, "--beside-streams"], 60),
        Stage("sanitizer", [*memcheck, *few], 60, _miss("compute-sanitizer"), uncached),
        Stage("two GPUs", [*PYTEST, f"{tests}/test_streams.py", "-k", "two_gpus"], 45, one_gpu),
        Stage("streams and graphs", [*PYTEST, f"{tests}/test_streams.py", "-k", "not two_gpus"], 60),
        Stage("extremes", [*PYTEST, f"{tests}/test_exactness.py", "-k", rest], 60),
        Stage("trainings", [*PYTEST, f"{tests}/test_trainings.py"], 60),
        Stage("one rank with NCCL", [*PYTEST, f"{tests}/test_sharded.py"], 60),
        Stage("errors", [*ERRORS, "--out", out], 60),
        Stage("speed", [*OVERHEAD, "--out", out], 90),
        Stage("speed in bfloat16", [*OVERHEAD, "--dtype", "bfloat16", "--out", f"{out}/bfloat16"], 60),
        Stage("bytes", [*profiler, PYTHON, "-m", "tests.gpu.traffic"], 60, _miss("ncu")),
    ]


def _miss(program):
    """Return why a stage that needs a program cannot be run."""
    return None if shutil.which(program) else f"no `{program}`"


def run(stage, path, limit):
    """Run a stage with its output in a file, and return how it ended."""
    start = time.monotonic()
    if stage.obstacle is not None:
        return Result(stage.name, f"left out: {stage.obstacle}", 0.0)
    if limit < min(stage.limit, SHORTEST):
        return Result(stage.name, "NOT RUN: no time is left", 0.0)
    path_of_packages = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "GPU_CHECK": "1", "PYTHONPATH": path_of_packages, **stage.environment}
    with path.open("w") as output:
        process = subprocess.Popen(
            stage.command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, env=environment, start_new_session=True
        )
        try:
            status = "passed" if process.wait(limit) == 0 else f"FAILED (exit status {process.returncode})"
        except subprocess.TimeoutExpired:
            status = f"TIMED OUT after {limit:.0f} s"
        except KeyboardInterrupt:
            _kill(process)
            raise
    _kill(process)
    return Result(stage.name, status, round(time.monotonic() - start, 1))


def _kill(process):
    """End a process and those that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def check(stages, out, seconds):
    """Run stages one after the other; return 1 if one of them did not pass, else 0."""
    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + seconds
    results = []
    for number, stage in enumerate(stages, start=1):
        path = out / f"{number:02d}-{stage.name.replace(' ', '-')}.txt"
        result = run(stage, path, min(stage.limit, end - time.monotonic()))
        results.append(result)
        (out / "check.json").write_text(json.dumps([asdict(each) for each in results], indent=1) + "\n")
        print(f"{result.stage:30s} {result.seconds:6.1f} s  {result.status}", flush=True)
        if result.status != "passed" and path.exists():
            print("".join(f"    {line}\n" for line in path.read_text(errors="replace").splitlines()[-12:]), flush=True)
    return int(any(result.status.startswith(("FAILED", "TIMED OUT", "NOT RUN")) for result in results))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="results/gpu", help="folder for the output of each stage (%(default)s)")
    parser.add_argument("--seconds", type=float, default=470, help="for all stages together (%(default)s)")
    parser.add_argument("--only", help="stages whose names contain this")
    options = parser.parse_args()
    gpus = torch.cuda.device_count()
    if not gpus:
        sys.exit("There is no CUDA GPU, or the driver or this PyTorch cannot use it.")
    stages = [stage for stage in list_stages(options.out, gpus) if (options.only or "") in stage.name]
    sys.exit(check(stages, Path(options.out), options.seconds))


if __name__ == "__main__":
    main()
