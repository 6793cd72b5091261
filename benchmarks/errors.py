"""How exact is ZNorm? The error of each backend against float64, as a table.

The error is the norm of the difference over the norm of the exact result; of half precision, the largest difference in
units of the last place. The gradients are normal noise of several means and magnitudes, and the distributions of
`tests/distributions.py`. Another table has the errors of `measure` and `apply_`, and of `center=False`.
Writes `errors.json` and `moments.json`. A few minutes on a CPU.
"""

import argparse
import json
import platform
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from lightning_znorm.backends.moments import compute_edit
from tests import distributions

BACKENDS = {"cpu": ("cpu", "generic"), "cuda": ("generic", "triton")}
SIZES = (2, 100, 4097, 100_003, 1_000_003, 25_000_000)
LARGEST_OF_VERBS = 1_000_003
NORMAL = [(mean, scale) for mean in (0, 1, 10, 1000) for scale in (1e-30, 1.0, 1e34)]
MEANS = (0, 1, 10)  # of the other distributions
UNMOVED = ("near the maximum", "denormal")  # float32 does not hold these with another mean
HALF = [name for name in distributions.DISTRIBUTIONS if name not in (*UNMOVED, "one outlier")]


def exact_z_score(gradient: torch.Tensor, eps: float) -> torch.Tensor:
    """Return the z-score in float64."""
    values = gradient.double()
    values = values - values[0]
    values = values - values.mean()
    return values / (values.square().mean().sqrt() + eps)


def draw_normal(size: int, mean: float, scale: float) -> tuple[torch.Tensor, float]:
    """Return a gradient, and an eps to match."""
    values = torch.randn(size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    return values.add_(mean).mul_(scale).float(), 1e-10 * scale


def measure_error(znorm_: Any, gradient: torch.Tensor, eps: float) -> dict[str, float]:
    """Return the error of one gradient, which is normalized."""
    expected = exact_z_score(gradient, eps)
    znorm_([gradient], eps)
    difference = gradient.double() - expected
    if gradient.dtype == torch.float32:
        return {"error": (difference.norm() / expected.norm()).item()}
    spacing = torch.finfo(gradient.dtype).eps * 2.0 ** expected.abs().clamp(min=1e-3).log2().floor()
    return {"ulps": (difference.abs() / spacing).max().item()}


def measure(backend: str, device: torch.device, sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """Return the error of each size, distribution, mean, scale and dtype."""
    znorm_ = import_module(f"lightning_znorm.backends.{backend}").znorm_
    rows = []
    for size in sizes:
        about: dict[str, Any] = {"backend": backend, "size": size}
        for mean, scale in NORMAL:
            gradient, eps = draw_normal(size, mean, scale)
            row = {**about, "dtype": "float32", "distribution": "normal", "mean": mean, "scale": scale}
            rows.append(row | measure_error(znorm_, gradient.to(device), eps))
        if size == 2:
            continue  # of two elements, other distributions are the same, or constant
        for name in distributions.DISTRIBUTIONS:
            for mean in (0,) if name in UNMOVED else MEANS:
                gradient, eps = distributions.draw(name, size, mean)
                row = {**about, "dtype": "float32", "distribution": name, "mean": mean}
                rows.append(row | measure_error(znorm_, gradient.to(device), eps))
                for dtype in (torch.float16, torch.bfloat16) if name in HALF and mean == 0 else ():
                    row = {**about, "dtype": str(dtype).removeprefix("torch."), "distribution": name, "mean": mean}
                    rows.append(row | measure_error(znorm_, gradient.to(device, dtype), eps))
    return rows


def measure_verbs(backend: str, device: torch.device, sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """Return the errors of the moments, of what they make of a gradient, and of a division by the root mean square.

    The error of the mean is in standard deviations, that of the sum of squares relative.
    """
    module = import_module(f"lightning_znorm.backends.{backend}")
    rows = []
    for size in sizes:
        cases: list[tuple[str, int, float, torch.Tensor, float]] = [
            ("normal", mean, scale, *draw_normal(size, mean, scale)) for mean, scale in NORMAL
        ]
        for name in distributions.DISTRIBUTIONS if size > 2 else ():
            for mean in (0,) if name in UNMOVED else MEANS:
                cases.append((name, mean, 1.0, *distributions.draw(name, size, mean)))
        for name, mean, scale, gradient, eps in cases:
            exact, z_score = gradient.double(), exact_z_score(gradient, eps)
            std, count = exact.std(correction=0), exact.numel()
            rms = exact / (torch.hypot(exact.mean(), std) + eps)
            gradient = gradient.to(device)
            copy = gradient.clone()
            moments = module.measure([gradient])
            module.apply_([gradient], *compute_edit(moments, eps)[:2])
            module.znorm_([copy], eps, center=False)
            row: dict[str, Any] = {"backend": backend, "size": size}
            row |= {"distribution": name, "mean": mean, "scale": scale}
            row["of the mean"] = abs(moments.mean.item() - exact.mean().item()) / std.item()
            row["of the squares"] = abs(moments.squares.item() / (count * std.item() ** 2) - 1)
            row["of both verbs"] = ((gradient.double().cpu() - z_score).norm() / z_score.norm()).item()
            row["without centring"] = ((copy.double().cpu() - rms).norm() / rms.norm()).item()
            rows.append(row)
    return rows


def show_verbs(rows: list[dict[str, Any]]) -> str:
    """Return a table with the worst error over all gradients, by mean and size."""
    sizes = sorted({row["size"] for row in rows})
    lines = [f"| error | {' | '.join(f'{size:,}' for size in sizes)} |", "|---" * (len(sizes) + 1) + "|"]
    for quantity in ("of the mean", "of the squares", "of both verbs", "without centring"):
        for label, far in ((", mean up to 10 std", False), (", mean 1000 std", True)):
            worst = [
                max(row[quantity] for row in rows if row["size"] == size and (row["mean"] > max(MEANS)) == far)
                for size in sizes
            ]
            lines.append(f"| {quantity}{label} | {' | '.join(f'{error:.1e}' for error in worst)} |")
    return "\n".join(lines)


def write(path: Path, name: str, rows: list[dict[str, Any]]) -> None:
    """Write one row a line."""
    lines = ",\n".join(json.dumps(row) for row in rows)
    path.write_text(f'{{"torch": "{torch.__version__}", "{name}": [\n{lines}\n]}}\n')


def show(rows: list[dict[str, Any]]) -> str:
    """Return two tables, each figure the worst over what is not in the table: normal noise, and the distributions."""
    sizes = [size for size in SIZES if any(row["size"] == size for row in rows)]
    lines = [f"| normal | {' | '.join(f'{size:,}' for size in sizes)} |", "|---" * (len(sizes) + 1) + "|"]
    for mean in (0, 1, 10, 1000):
        label = "mean 0" if mean == 0 else f"mean {mean} std"
        lines.append(f"| {label} | {cells(rows, sizes, dtype='float32', distribution='normal', mean=mean)} |")
    lines += ["", f"| distribution | {' | '.join(f'{size:,}' for size in sizes[1:])} |", "|---" * len(sizes) + "|"]
    for name in distributions.DISTRIBUTIONS:
        shifted = [row for row in rows if row["mean"] <= max(MEANS)]
        lines.append(f"| {name} | {cells(shifted, sizes[1:], dtype='float32', distribution=name)} |")
    for dtype in ("float16", "bfloat16"):
        lines.append(f"| {dtype}, all of these | {cells(rows, sizes[1:], dtype=dtype)} |")
    return "\n".join(lines)


def cells(rows: list[dict[str, Any]], sizes: list[int], **chosen: Any) -> str:
    """Return the worst error of each size."""
    found = []
    for size in sizes:
        matching = [row for row in rows if row["size"] == size and chosen.items() <= row.items()]
        worst = max(row.get("error", row.get("ulps")) for row in matching)
        found.append(f"{worst:.2f} ulp" if "ulps" in matching[0] else f"{worst:.1e}")
    return " | ".join(found)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2, help="on a CPU (%(default)s)")
    parser.add_argument("--largest", type=int, default=max(SIZES), help="number of elements (%(default)s)")
    parser.add_argument("--out", type=Path, help="folder; by default benchmarks/results/<machine>")
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)
    is_gpu = device.type == "cuda"
    machine = torch.cuda.get_device_name(device) if is_gpu else f"{platform.machine()}-{options.threads}-threads"
    out = options.out or Path(__file__).parent / "results" / machine.replace(" ", "-").lower()
    sizes = tuple(size for size in SIZES if size <= options.largest)
    rows, verbs = [], []
    for backend in BACKENDS[device.type]:
        rows += measure(backend, device, sizes)
        print(f"\n`{backend}` on {machine}, torch {torch.__version__}\n")
        print(show([row for row in rows if row["backend"] == backend]), flush=True)
        verbs += measure_verbs(backend, device, tuple(size for size in sizes if size <= LARGEST_OF_VERBS))
        print("", show_verbs([row for row in verbs if row["backend"] == backend]), sep="\n", flush=True)
        out.mkdir(parents=True, exist_ok=True)
        write(out / "errors.json", "errors", rows)
        write(out / "moments.json", "moments", verbs)


if __name__ == "__main__":
    main()
