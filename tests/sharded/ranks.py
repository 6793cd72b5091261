"""Many cases in one launch of several processes: each is a function that every rank calls, and that asserts."""

import os
import sys
import time
import traceback
from collections import defaultdict
from contextlib import contextmanager
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from torch.distributed.tensor.debug import CommDebugMode

from tests import warm

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys

sys.path.insert(0, {root!r})
from tests.sharded import ranks

if __name__ == "__main__":
    ranks.call({module!r})
"""
TIMEOUT = timedelta(seconds=60)
DEVICE = torch.device(os.environ.get("TESTS_SHARDED_DEVICE", "cpu"))
BACKEND = "gloo" if DEVICE.type == "cpu" else "nccl"
_cases = defaultdict(dict)


def on(*counts):
    """Register a case for these numbers of ranks."""

    def register(case):
        _cases[case.__module__][case.__name__] = case, counts
        return case

    return register


def launch(module, count, run_ranks=warm.run_ranks):
    """Run the cases of a module on a number of ranks; return what failed on which rank, and what the cases returned."""
    script = Path(f"{module}.{count}.py").absolute()
    script.write_text(SCRIPT.format(root=str(ROOT), module=module))
    failures = []
    for rank, done in enumerate(run_ranks(script, count)):
        if done.returncode:
            failures.append(f"rank {rank} ended with {done.returncode}: {done.stderr[-3000:]}")
    found = [torch.load(path) for path in sorted(Path().glob(f"outcome*.of{count}.pt"))]
    for rank, outcomes in enumerate(found):
        failures += [f"{name} on rank {rank}:\n{text}" for name, (text, _, _) in outcomes.items() if text]
    assert failures or len(found) == count
    return failures, found


def call(module):
    """Be a rank."""
    rank, count = int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"])
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    torch.set_num_threads(1)
    import_module(module)
    if DEVICE.type == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group(BACKEND, rank=rank, world_size=count, timeout=TIMEOUT)
    outcomes = {}
    for name, (case, counts) in _cases[module].items():
        if count not in counts:
            continue
        torch.manual_seed(0)
        began, result, failure = time.perf_counter(), None, ""
        try:
            result = case()
        except Exception:
            failure = traceback.format_exc()
        outcomes[name] = failure, result, time.perf_counter() - began
        if failure:
            print(name, failure, file=sys.stderr)
            break  # the other ranks may wait for this one
    torch.save(outcomes, f"outcome{rank}.of{count}.pt")
    dist.destroy_process_group()


class Collectives:
    """What torch.distributed did: the number of its operations, and the bytes that were added up."""

    count = 0
    bytes = 0


@contextmanager
def count_collectives():
    """Count collectives, those that DTensor asks for as well."""
    found, add_up = Collectives(), dist.all_reduce

    def all_reduce(tensor, *args, **kwargs):
        found.bytes += tensor.numel() * tensor.element_size()
        return add_up(tensor, *args, **kwargs)

    with CommDebugMode() as mode, mock.patch.object(dist, "all_reduce", all_reduce):
        yield found
    found.count = mode.get_total_counts()
