"""A rank that ends, or does not come to a step: every other one ends with an error that names the time-out."""

from pathlib import Path

import pytest

from tests import warm
from tests.sharded.ranks import ROOT

SCRIPT = """
import os
import sys
import time
from datetime import timedelta

sys.path.insert(0, {root!r})
import torch
import torch.distributed as dist

from lightning_znorm import ZNorm, attach
from tests.sharded import training

if __name__ == "__main__":
    torch.set_num_threads(1)
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    rank, count = int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", rank=rank, world_size=count, timeout=timedelta(seconds={timeout}))
    network = training.make_network()
    sharding = training.fsdp2(network)
    stepper = training.make_sgd(network.parameters())
    attach(stepper, ZNorm(), network)
    for step in range(2):
        stepper.zero_grad()
        training.loss_of(network, *sharding.share_of(training.make_batch(step))).backward()
        if step == 1 and rank == 1:
            {fault}
        stepper.step()
    os._exit(0)
"""
FAULTS = {"ended": "os._exit(3)", "late": "time.sleep(3600)"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "timeout"),
    [("ended", 20), ("late", 3), pytest.param("late", 20, marks=pytest.mark.long)],
)
def test_every_other_rank_ends_with_an_error(fault, timeout):
    script = Path("train.py").absolute()
    script.write_text(SCRIPT.format(root=str(ROOT), timeout=timeout, fault=FAULTS[fault]))
    ranks = [{"LOCAL_RANK": str(rank), "WORLD_SIZE": "3"} for rank in range(3)]
    programs = [warm.start(script, env=environment) for environment in ranks]
    for rank in (0, 2):
        _, errors = programs[rank].communicate()
        assert programs[rank].returncode == 1, errors
        message = errors.strip().splitlines()
        assert any(
            f"CollectiveError: Rank {rank} could not exchange the statistics of gradients" in line
            and "with the ranks [0, 1, 2]" in line
            and f"the time-out of the group is {timeout} s" in line
            for line in message
        ), errors
    programs[1].kill()
