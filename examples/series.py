"""Comparisons that are run one after the other, in pieces."""

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

LEAST_MINUTES = 0.5
OPTIMIZER = "--model.init_args.optimizer"
SGD = [f"{OPTIMIZER}=torch.optim.SGD", f"{OPTIMIZER}.init_args.momentum=0.9"]
ADAM = [f"{OPTIMIZER}=torch.optim.Adam"]


def format_searches(starts: Mapping[str, float]) -> str:
    """Return the values of a sweep: for each method a search that begins at a value.

    >>> format_searches({"none": 0.01, "znorm(min_ndim=2)": 3e-4})
    "{'none': auto(0.01), 'znorm(min_ndim=2)': auto(0.0003)}"

    """
    return f"{{{', '.join(f'{method!r}: auto({start:g})' for method, start in starts.items())}}}"


def add_series_arguments(parser: argparse.ArgumentParser, out: Path) -> None:
    """Let the folder, the time and the number of runs side by side be given."""
    parser.add_argument("--out", type=Path, default=out, help="folder of the results (%(default)s)")
    parser.add_argument("--jobs", type=int, help="runs side by side")
    parser.add_argument("--minutes", type=float, help="stop after so many minutes; the same command goes on")
    parser.add_argument("--list", action="store_true", help="only show the commands")


def run_series(flags_by_name: Mapping[str, Sequence[str]], arguments: argparse.Namespace) -> None:
    """Call `lightning-znorm compare` with the options of each comparison, until one fails or the time is up."""
    end = None if arguments.minutes is None else time.monotonic() + 60 * arguments.minutes
    for name, flags in flags_by_name.items():
        command = [sys.executable, "-m", "lightning_znorm", "compare", *flags]
        command += [] if arguments.jobs is None else [f"--compare.jobs={arguments.jobs}"]
        if end is not None:
            minutes = (end - time.monotonic()) / 60
            if minutes <= LEAST_MINUTES:
                print(f"Time is up before {name}. The same command goes on from here.", file=sys.stderr)
                sys.exit(130)
            command.append(f"--compare.minutes={minutes:.2f}")
        print(f"\n== {name}: {shlex.join(command[1:])}", flush=True)
        if not arguments.list:
            status = subprocess.run(command, check=False).returncode
            if status:
                sys.exit(status)
