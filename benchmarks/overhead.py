"""What does ZNorm cost, compared with gradient clipping?

Times `znorm_` and `GradientClipping` against `clip_grad_norm_` (foreach), the plain loop over parameters and gradient
centralization, on gradients of the shapes of well-known networks, of one network with ever more channels, and of ever
more small tensors; and as a share of a training step of ResNet-50. All repetitions are interleaved in one process, the
figures are medians, and what counts are ratios. Writes `overhead.json` and `overhead.png`. On two CPU cores about 5
minutes.
"""

import argparse
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from lightning_znorm import GradientClipping, centralize_, znorm_

Shapes = list[tuple[int, ...]]
NETWORKS = ("resnet18", "resnet50", "vit_b_16", "vit_l_16", "convnext_tiny", "densenet121", "efficientnet_b0")
SMALL = 1000


def shapes_of(name: str) -> Shapes:
    """Return the shapes of a network's parameters."""
    if name == "1,000 small tensors":
        return [(SMALL,)] * 1000
    if name == "unet (resnet34)":
        import segmentation_models_pytorch

        with torch.device("meta"):
            network = segmentation_models_pytorch.Unet("resnet34", encoder_weights=None)
    else:
        import torchvision

        with torch.device("meta"):
            network = getattr(torchvision.models, name)()
    return [tuple(parameter.shape) for parameter in network.parameters()]


def make_parameters(shapes: Shapes, device: torch.device, dtype: torch.dtype) -> list[nn.Parameter]:
    """Return parameters without memory of their own, and with gradients."""
    parameters = [nn.Parameter(torch.zeros((), device=device, dtype=dtype).expand(shape)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, device=device).mul_(1e-3).add_(1e-4).to(dtype)
    return parameters


@torch.no_grad()
def plain_loop(parameters: list[nn.Parameter]) -> None:
    """Normalize as one would write it down."""
    for parameter in parameters:
        gradient = parameter.grad
        gradient.sub_(gradient.mean()).div_(gradient.std(correction=0) + 1e-10)


def ways(parameters: list[nn.Parameter]) -> dict[str, Callable[[], Any]]:
    """Return what is compared; on a GPU also the backend without Triton."""
    clipping = GradientClipping(1.0)
    calls = {
        "clip_grad_norm_": lambda: nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True),
        "znorm_": lambda: znorm_(parameters),
        "GradientClipping": lambda: clipping.transform(parameters),  # after `znorm_`, which leaves something to clip
        "plain loop": lambda: plain_loop(parameters),
        "centralize_": lambda: centralize_(parameters),
    }
    gradients = [parameter.grad for parameter in parameters]
    if gradients[0].is_cuda:
        from lightning_znorm.backends import generic

        calls["znorm_ without Triton"] = lambda: generic.znorm_(gradients, 1e-10)
    return calls


def time_on_cpu(call: Callable[[], Any]) -> dict[str, float]:
    """Return the milliseconds of one call."""
    start = time.perf_counter()
    call()
    return {"wall": 1000 * (time.perf_counter() - start)}


def time_on_gpu(call: Callable[[], Any], scratch: torch.Tensor) -> dict[str, float]:
    """Return the milliseconds of one call with a cold L2 cache: until the host goes on, in all, and of the device."""
    scratch.zero_()
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    host = 1000 * (time.perf_counter() - start)
    torch.cuda.synchronize()
    wall = 1000 * (time.perf_counter() - start)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    scratch.zero_()
    torch.cuda._sleep(int(2e6 * max(1.0, wall)))  # for the host to be ahead, so that its launches are not in the figure
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return {"host": host, "wall": wall, "device": begin.elapsed_time(end)}


def measure(calls: dict[str, Callable[[], Any]], device: torch.device, repetitions: int) -> dict[str, dict[str, float]]:
    """Return median milliseconds of each call, all interleaved."""
    scratch = torch.empty(256 << 20 if device.type == "cuda" else 0, dtype=torch.uint8, device=device)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in calls}
    for repetition in range(repetitions + 2):
        for name, call in calls.items():
            times = time_on_gpu(call, scratch) if device.type == "cuda" else time_on_cpu(call)
            if repetition >= 2:
                found[name].append(times)
    return {
        name: {kind: statistics.median(each[kind] for each in times) for kind in times[0]}
        for name, times in found.items()
    }


def measure_copy(device: torch.device, elements: int, dtype: torch.dtype) -> float:
    """Return the bytes per second of one read and one write."""
    source = torch.randn(elements, device=device).to(dtype)
    target = torch.empty_like(source)
    times = measure({"copy": lambda: target.copy_(source)}, device, 10)["copy"]
    return 2 * dtype.itemsize * elements / (times.get("device", times["wall"]) / 1000)


def measure_list(
    name: str, shapes: Shapes, device: torch.device, dtype: torch.dtype, repetitions: int
) -> dict[str, Any]:
    """Measure all ways on gradients of these shapes, and print the ratios."""
    elements = sum(math.prod(shape) for shape in shapes)
    parameters = make_parameters(shapes, device, dtype)
    milliseconds = measure(ways(parameters), device, repetitions)
    bandwidth = measure_copy(device, min(elements, 1 << 28), dtype)
    kind = "device" if device.type == "cuda" else "wall"
    floor = 1000 * 2 * dtype.itemsize * elements / bandwidth
    ratios = {
        kind: {way: times[kind] / milliseconds["clip_grad_norm_"][kind] for way, times in milliseconds.items()}
        for kind in milliseconds["znorm_"]
    }
    row = {"name": name, "tensors": len(shapes), "elements": elements, "milliseconds": milliseconds, "ratios": ratios}
    row |= {"copy_ms": floor, "of_copy_rate": floor / milliseconds["znorm_"][kind]}
    shown = ", ".join(f"{way} {ratio:.2f}" for way, ratio in ratios[kind].items() if way != "clip_grad_norm_")
    clip = milliseconds["clip_grad_norm_"][kind]
    print(f"{name:20s} {len(shapes):5d} tensors {elements / 1e6:7.1f} M  clip {clip:8.3f} ms; {shown};", end=" ")
    print(f"{row['of_copy_rate']:.0%} of the copy rate", flush=True)
    return row


def measure_step(device: torch.device) -> dict[str, float]:
    """Measure a whole training step of ResNet-50, and `znorm_` on its gradients."""
    import torchvision

    is_gpu = device.type == "cuda"
    network = torchvision.models.resnet50().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    images = torch.randn(128 if is_gpu else 8, 3, 224, 224, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(1000, (len(images),), device=device)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=is_gpu):
            loss = nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()

    parameters = list(network.parameters())
    times = measure({"step": step, "znorm_": lambda: znorm_(parameters)}, device, 10 if is_gpu else 3)
    kind = "device" if is_gpu else "wall"
    found = {"batch": len(images), "step_ms": times["step"][kind], "znorm_ms": times["znorm_"][kind]}
    found["share"] = found["znorm_ms"] / found["step_ms"]
    print(f"ResNet-50 step, batch {found['batch']}: {found['step_ms']:.1f} ms, of which znorm_ {found['share']:.2%}")
    return found


def save(found: dict[str, Any], folder: Path) -> None:
    """Write what has been measured so far."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "overhead.json").write_text(json.dumps(found, indent=1) + "\n")


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2, help="on a CPU (%(default)s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the gradients")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--out", type=Path, help="folder; by default benchmarks/results/<machine>")
    options = parser.parse_args()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    torch.set_num_threads(options.threads)
    is_gpu = device.type == "cuda"
    machine = torch.cuda.get_device_name(device) if is_gpu else f"{platform.machine()}-{options.threads}-threads"
    out = options.out or Path(__file__).parent / "results" / machine.replace(" ", "-").lower()
    about = {
        "machine": machine,
        "dtype": options.dtype,
        "torch": torch.__version__,
        "lightning": version("lightning"),
        "python": sys.version,
    }
    if not is_gpu:
        about |= {"cpus": os.cpu_count(), "capability": torch.backends.cpu.get_cpu_capability()}
    print(json.dumps(about))
    networks = []
    for name in (*NETWORKS, "unet (resnet34)", "1,000 small tensors"):
        try:
            networks.append(measure_list(name, shapes_of(name), device, dtype, options.repetitions))
        except ImportError as error:
            print(f"{name}: left out ({error})")
    sizes = [1 << power for power in range(14, 28, 2)]
    save({"about": about, "networks": networks}, out)
    by_bytes = [measure_list(f"8 x {size}", [(size,)] * 8, device, dtype, options.repetitions) for size in sizes]
    counts = (10, 30, 100, 300, 1000, 3000)
    by_count = [measure_list(f"{n} x {SMALL}", [(SMALL,)] * n, device, dtype, options.repetitions) for n in counts]
    found = {"about": about, "networks": networks, "by_bytes": by_bytes, "by_count": by_count}
    save(found, out)
    found["step"] = measure_step(device)
    save(found, out)
    try:
        from overhead_picture import draw
    except ImportError as error:
        print(f"no picture ({error})")
    else:
        draw(found, out / "overhead.png")
    print(f"written to {out}")


if __name__ == "__main__":
    main()
