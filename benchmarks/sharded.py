"""What does ZNorm cost where ranks hold parts of a model, measured and by arithmetic?

Times ZNorm, gradient centralization and clipping against `torch.nn.utils.clip_grad_norm_` on the same DTensors, which
two and then four processes of this machine hold, with one thread each (gloo). All repetitions are interleaved, and each
begins when all ranks are ready; the figures are medians of the slowest rank, and what counts are ratios. Writes
`sharded.json`. With `--arithmetic` it prints the table of bytes and latencies at scale in `docs/sharding.md` instead.
On two CPU cores about 2 minutes; nothing else should run.
"""

import argparse
import json
import math
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard

sys.path.insert(0, str(Path(__file__).parents[1]))
from lightning_znorm import GradientCentralization, GradientClipping, GradientTransform, ZNorm, znorm_
from lightning_znorm.backends.layouts import find_dtensor_layout
from lightning_znorm.functional import add_up, collect_gradients

NETWORKS = ("resnet50", "vit_b_16")
RESULT = Path(__file__).parent / "results" / "sharded.json"


class Model(NamedTuple):
    """Sizes of a language model."""

    name: str
    parameters: float
    tensors: int


# of GPT-2 medium; of Llama 2 of 7 and of 70 billion parameters: nine tensors per layer, and three
MODELS = (Model("0.3 billion", 0.355e9, 292), Model("7 billion", 6.7e9, 291), Model("70 billion", 69e9, 723))
RANKS = (8, 1024, 16384)
BANDWIDTH = 50e9  # bytes per second and GPU, of a network of 400 Gb/s
HOP = 10e-6  # seconds of a message between two nodes, the handling by both included
PER_NODE = 8


def estimate_bytes(model: Model) -> int:
    """Return the bytes that each rank adds up with the others in a step: two float64 per tensor."""
    return 16 * model.tensors


def estimate_latency(model: Model, ranks: int) -> float:
    """Return the seconds of their all-reduce: up and down a tree over the nodes, and once over the GPUs of a node."""
    hops = 2 * math.ceil(math.log2(max(ranks // PER_NODE, 1))) + 2
    return hops * HOP + 2 * estimate_bytes(model) / BANDWIDTH


def estimate_reduce_scatter(model: Model, ranks: int) -> float:
    """Return the seconds in which a strategy reduces and scatters gradients in bfloat16, limited by bandwidth alone."""
    return 2 * model.parameters * (ranks - 1) / ranks / BANDWIDTH


def format_arithmetic() -> str:
    """Return the table of `docs/sharding.md`."""
    rows = ["| model | ranks | bytes | all-reduce | gradients per rank | reduce-scatter | share |"]
    rows += ["|---|---|---|---|---|---|---|"]
    for model in MODELS:
        for ranks in RANKS:
            latency, strategy = estimate_latency(model, ranks), estimate_reduce_scatter(model, ranks)
            rows.append(
                f"| {model.name} | {ranks:,} | {estimate_bytes(model) / 1000:.1f} kB | {latency * 1e6:.0f} µs |"
                f" {2 * model.parameters / 1e9:.1f} GB | {strategy * 1e3:,.0f} ms | {100 * latency / strategy:.2g}% |"
            )
    return "\n".join(rows)


def make_parameters(name: str, mesh: DeviceMesh) -> list[nn.Parameter]:
    """Return parameters with gradients, as FSDP2 shards those of a network."""
    import torchvision

    with torch.device("meta"):
        shapes = [parameter.shape for parameter in getattr(torchvision.models, name)().parameters()]
    parameters = []
    for shape in shapes:
        chunks = torch.empty(shape, device="meta").chunk(mesh.size())
        rows = len(chunks[mesh.get_local_rank()]) if mesh.get_local_rank() < len(chunks) else 0
        part = torch.randn(rows, *shape[1:]).mul_(1e-3).add_(1e-4)
        stride = torch.empty(shape, device="meta").stride()
        tensors = [
            DTensor.from_local(tensor, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)
            for tensor in (torch.zeros(rows, *shape[1:]), part)
        ]
        parameter = nn.Parameter(tensors[0])
        parameter.grad = tensors[1]
        parameters.append(parameter)
    return parameters


def ways(parameters: list[nn.Parameter]) -> dict[str, Callable[[], Any]]:
    """Return what is compared; transforms as in a Trainer, which looks for the parts once."""
    layouts = {parameter: find_dtensor_layout(parameter) for parameter in parameters}

    def apply(transform: GradientTransform) -> None:
        with torch.no_grad():
            gradients = collect_gradients(parameters, layouts.get)
            sums = transform.measure_shards(gradients)
            add_up(sums)
            transform.transform_shards(gradients, sums, None)

    return {
        "clip_grad_norm_": lambda: nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True),
        "ZNorm": partial(apply, ZNorm()),
        "znorm_": lambda: znorm_(parameters),
        "GradientClipping": partial(apply, GradientClipping(1.0)),
        "GradientCentralization": partial(apply, GradientCentralization()),
    }


def measure(rank: int, ranks: int, store: str, repeats: int, queue: Any) -> None:
    """Be a rank; the first one reports."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    mesh = init_device_mesh("cpu", (ranks,))
    rows = []
    for network in NETWORKS:
        calls = ways(make_parameters(network, mesh))
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for repeat in range(repeats + 2):
            for name, call in calls.items():
                dist.barrier()
                start = time.perf_counter()
                call()
                slowest = torch.tensor(time.perf_counter() - start)
                dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
                if repeat > 1:
                    seconds[name].append(slowest.item())
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        ratios = {name: value / medians["clip_grad_norm_"] for name, value in medians.items()}
        rows.append({"network": network, "ranks": ranks, "milliseconds": 1e3 * medians["ZNorm"], **ratios})
    if rank == 0:
        queue.put(rows)
    dist.destroy_process_group()


def main() -> None:
    """Measure, or calculate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arithmetic", action="store_true", help="print the table of costs at scale")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4], help="numbers of processes (%(default)s)")
    parser.add_argument("--repeats", type=int, default=30, help="repetitions of each call (%(default)s)")
    parser.add_argument("--out", type=Path, default=RESULT, help="JSON file (%(default)s)")
    options = parser.parse_args()
    if options.arithmetic:
        print(format_arithmetic())
        return
    rows = []
    for ranks in options.ranks:
        with tempfile.TemporaryDirectory() as folder:
            context = torch.multiprocessing.get_context("spawn")
            queue = context.SimpleQueue()
            arguments = (ranks, f"{folder}/store", options.repeats, queue)
            torch.multiprocessing.spawn(measure, arguments, nprocs=ranks)
            rows += queue.get()
    for row in rows:
        print(
            ", ".join(f"{name} {value:.3g}" if isinstance(value, float) else f"{value}" for name, value in row.items())
        )
    machine = {"torch": version("torch"), "machine": platform.machine(), "cores": os.cpu_count()}
    options.out.write_text(json.dumps({**machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
