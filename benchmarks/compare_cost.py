"""What does a comparison cost beside its trainings?

Runs `lightning-znorm compare` on a small network, about a second of training per run, with 36 and with 100 runs, and
compares the time of the whole command with the sum of the trainings over the jobs: in processes of this machine, and
on a Dask LocalCluster with as many workers. Prints a table and writes it as JSON. About 7 minutes on 2 quiet CPU cores;
nothing else should run.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import lightning.pytorch as pl
import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "compare_cost.json"


class Network(pl.LightningModule):
    """A perceptron on noise, with its own data."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 2))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Return the loss."""
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        """Log the loss."""
        self.log("val_loss", self.training_step(batch, batch_idx))

    def test_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        """Log the loss."""
        self.log("test_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> DataLoader:
        """Return batches of noise."""
        generator = torch.Generator().manual_seed(0)
        data = TensorDataset(torch.randn(512, 64, generator=generator), torch.randint(2, (512,), generator=generator))
        return DataLoader(data, batch_size=64, shuffle=True)

    val_dataloader = test_dataloader = train_dataloader


def compare(folder: Path, engine: str, runs: int, steps: int, jobs: int) -> dict[str, float | str]:
    """Make one comparison; return its seconds, and those of its trainings and runs."""
    options = {"methods": "znorm", "sweep": "null", "confirm": runs, "out": folder}
    if engine == "pool":
        options["jobs"] = jobs
    else:
        cluster = {"n_workers": jobs, "threads_per_worker": 1, "dashboard_address": None}
        arguments = {"cluster": "distributed.LocalCluster", "options": cluster}
        options["executor"] = json.dumps({"class_path": "DaskExecutor", "init_args": arguments})
    command = [sys.executable, "-m", "lightning_znorm", "compare", "--model=benchmarks.compare_cost.Network"]
    command += [f"--trainer.max_steps={steps}", "--trainer.max_epochs=-1", "--trainer.accelerator=cpu"]
    command += ["--trainer.val_check_interval=1000000", "--trainer.check_val_every_n_epoch=null"]
    command += [f"--compare.{name}={value}" for name, value in options.items()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    start = time.perf_counter()
    subprocess.run(command, check=True, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL)
    wall = time.perf_counter() - start
    results = [json.loads(path.read_text()) for path in folder.glob("runs/*/result.json")]
    training = sum(result["seconds"]["fit"] for result in results)
    everything = sum(result["seconds"]["all"] for result in results)
    return {
        "engine": engine,
        "runs": len(results),
        "jobs": jobs,
        "seconds": wall,
        "training per run": training / len(results),
        "else per run": (everything - training) / len(results),
        "ratio": wall / (training / jobs),
    }


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[36, 100], help="numbers of runs (%(default)s)")
    parser.add_argument("--steps", type=int, default=170, help="steps of each training (%(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side (%(default)s)")
    parser.add_argument("--out", type=Path, default=RESULT, help="JSON file (%(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        rows = [
            compare(Path(name, f"{engine}-{runs}"), engine, runs, options.steps, options.jobs)
            for runs in options.runs
            for engine in ("pool", "LocalCluster")
        ]
    print(pd.DataFrame(rows).round(2).to_string(index=False))
    versions = {package: version(package) for package in ("torch", "lightning")}
    options.out.write_text(json.dumps({"versions": versions, "cores": os.cpu_count(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
