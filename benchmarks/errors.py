"""How exact is ZNorm? The error of each backend against float64, as a table.

The error is the norm of the difference over the norm of the exact result; of half precision, the largest difference in
units of the last place. Writes `errors.json`. Less than a minute.
"""

import argparse
import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from lightning_znorm.backends import choose_znorm_

SIZES = (2, 100, 4097, 100_003, 1_000_003, 25_000_000)
CASES = [(mean, scale) for mean in (0, 1, 10, 1000) for scale in (1e-30, 1.0, 1e34)]


def exact_z_score(gradient: torch.Tensor, eps: float) -> torch.Tensor:
    """Return the z-score in float64."""
    values = gradient.double()
    values = values - values[0]
    values = values - values.mean()
    return values / (values.square().mean().sqrt() + eps)


def draw(size: int, mean: float, scale: float, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return a gradient."""
    generator = torch.Generator().manual_seed(size)
    values = torch.randn(size, generator=generator, dtype=torch.float64)
    return values.add_(mean).mul_(scale).to(dtype).to(device)


def measure(device: torch.device) -> list[dict[str, Any]]:
    """Return the error of each size, mean, scale and dtype."""
    znorm_ = choose_znorm_(device)
    rows = []
    for size in SIZES:
        for mean, scale in CASES:
            gradient = draw(size, mean, scale, torch.float32, device)
            expected = exact_z_score(gradient, 1e-10 * scale)
            znorm_([gradient], 1e-10 * scale)
            error = ((gradient.double() - expected).norm() / expected.norm()).item()
            rows.append({"dtype": "float32", "size": size, "mean": mean, "scale": scale, "error": error})
        for dtype in (torch.float16, torch.bfloat16):
            gradient = draw(size, 0.5, 0.1, dtype, device)
            expected = exact_z_score(gradient, 1e-10)
            znorm_([gradient], 1e-10)
            spacing = torch.finfo(dtype).eps * 2.0 ** expected.abs().clamp(min=1e-3).log2().floor()
            ulps = ((gradient.double() - expected).abs() / spacing).max().item()
            rows.append({"dtype": str(dtype).removeprefix("torch."), "size": size, "mean": 0.5, "ulps": ulps})
    return rows


def show(rows: list[dict[str, Any]]) -> str:
    """Return a table: the worst over all scales."""
    lines = ["| elements | mean 0 | 1 std | 10 std | 1000 std | float16 | bfloat16 |", "|---|---|---|---|---|---|---|"]
    for size in SIZES:
        own = [row for row in rows if row["size"] == size]
        cells = [
            f"{max(row['error'] for row in own if row['mean'] == mean and 'error' in row):.1e}"
            for mean in (0, 1, 10, 1000)
        ]
        cells += [f"{row['ulps']:.2f} ulp" for row in own if "ulps" in row]
        lines.append(f"| {size:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2, help="on a CPU (%(default)s)")
    parser.add_argument("--out", type=Path, help="folder; by default benchmarks/results/<machine>")
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)
    is_gpu = device.type == "cuda"
    machine = torch.cuda.get_device_name(device) if is_gpu else f"{platform.machine()}-{options.threads}-threads"
    out = options.out or Path(__file__).parent / "results" / machine.replace(" ", "-").lower()
    rows = measure(device)
    print(show(rows))
    out.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(row) for row in rows)
    (out / "errors.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
