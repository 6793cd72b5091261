"""What does a comparison cost over the plain `fit` runs that it replaces?

Times, in one go on one machine, the same trainings of `examples/demo_digits.yaml` three times: each as a process of
its own (`lightning-znorm fit`, without a test), all of them in `lightning-znorm compare --compare.jobs=1`, and with two
side by side. Prints a table and writes it as JSON. About 8 minutes on 2 CPU cores; nothing else should run.
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

import pandas as pd

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "examples" / "demo_digits.yaml"
METHODS = {"none": [], "znorm": ["--trainer.callbacks+=lightning_znorm.ZNorm"]}
LR = "model.init_args.optimizer.init_args.lr"


def run(*arguments: str | Path) -> float:
    """Run the command line in a process of its own, and return the seconds."""
    start = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "lightning_znorm", *map(str, arguments)]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def fit_each(folder: Path, flags: list[str], seeds: int) -> float:
    """Run each training as a user would without `compare`."""
    import yaml

    config = yaml.safe_load(CONFIG.read_text())
    del config["compare"]
    file = folder / "fit.yaml"
    file.write_text(yaml.safe_dump(config))
    quiet = [f"--trainer.{name}=false" for name in ("enable_progress_bar", "enable_checkpointing")]
    common = ["fit", f"--config={file}", f"--{LR}=0.01", f"--trainer.default_root_dir={folder}", *quiet, *flags]
    return sum(run(*common, f"--seed_everything={seed}", *METHODS[name]) for seed in range(seeds) for name in METHODS)


def compare(folder: Path, flags: list[str], seeds: int, jobs: int) -> tuple[float, float]:
    """Run them in one comparison; return its seconds, and the seconds of the fits alone, added up."""
    options = {"methods": ",".join(METHODS), "seeds": seeds, "jobs": jobs, "out": folder, "sweep": f"{LR}=0.01"}
    wall = run(
        "compare", f"--config={CONFIG}", *(f"--compare.{name}={value}" for name, value in options.items()), *flags
    )
    results = [json.loads(path.read_text()) for path in folder.glob("runs/*/result.json")]
    return wall, sum(result["seconds"]["fit"] for result in results)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4, help="the number of runs is twice that (%(default)s)")
    parser.add_argument("--epochs", type=int, default=6, help="epochs of each run (%(default)s)")
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()
    flags = [f"--trainer.max_epochs={options.epochs}"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain = fit_each(folder, flags, options.seeds)
        one, fits_one = compare(folder / "one", flags, options.seeds, jobs=1)
        two, fits_two = compare(folder / "two", flags, options.seeds, jobs=2)
    table = pd.DataFrame(
        {
            "seconds": [plain, one, two],
            "of which fit": [None, fits_one, fits_two],
            "times the plain fits": [1.0, one / plain, two / plain],
        },
        index=["each a process of `fit`", "compare, jobs=1 (with trial, test and report)", "compare, jobs=2"],
    )
    runs = options.seeds * len(METHODS)
    print(f"{runs} runs of {options.epochs} epochs\n{table.round(2).to_string()}")
    if options.out is not None:
        versions = {package: version(package) for package in ("torch", "lightning")}
        about = {"runs": runs, "epochs": options.epochs, "cores": os.cpu_count(), **versions}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({**about, "table": table.to_dict("index")}, indent=1) + "\n")


if __name__ == "__main__":
    main()
