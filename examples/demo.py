"""Two comparisons of ZNorm with plain training, in a few minutes; `make demo` runs this.

1. A picture of the gradients in a residual network without normalization, in which they explode.
2. That network on handwritten digits: without a transform, with gradient clipping, and with ZNorm.
3. A small U-Net on slices of a brain template: without a transform, and with ZNorm.

Further options are those of `lightning-znorm compare`, for both comparisons.
"""

import subprocess
import sys
from functools import partial
from pathlib import Path

import torch
import yaml
from lightning.pytorch import Trainer, seed_everything

from lightning_znorm import GradientMonitor, ZNorm
from lightning_znorm.vision import Digits, PerceptronClassifier

HERE = Path(__file__).parent
OUT = Path("results/demo")
COMPARISONS = ("digits", "brain_mri")
OWN = """lightning-znorm compare --model my_package.MyModule --data my_package.MyDataModule \\
    --trainer.max_epochs 10 --compare.monitor val_acc"""


def draw_gradients(epochs: int = 3) -> Path:
    """Train the residual network of the first comparison for some epochs, and draw its gradients."""
    seed_everything(0, verbose=False)
    trainer = Trainer(
        max_epochs=epochs,
        limit_val_batches=0,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=OUT,
        callbacks=[ZNorm(), GradientMonitor(every_n_steps=1, picture="gradients.png")],
    )
    network = yaml.safe_load((HERE / "demo_digits.yaml").read_text())["model"]["init_args"]
    optimizer = partial(torch.optim.SGD, lr=1e-3, momentum=0.9)
    model = PerceptronClassifier(depth=network["depth"], has_skips=network["has_skips"], optimizer=optimizer)
    trainer.fit(model, Digits(image_size=8))
    return OUT / "gradients.png"


def read_answer(folder: Path) -> str:
    """Return question and sentences of a comparison's summary."""
    lines = (folder / "summary.md").read_text().splitlines()
    return "\n".join([lines[0].removeprefix("# "), *(line for line in lines if line.startswith("- `"))])


def main() -> None:
    """Draw, compare, and repeat the answers."""
    picture = draw_gradients()
    print(f"Gradients of each layer, as they are and as ZNorm makes them: {picture}", flush=True)
    for name in COMPARISONS:
        flags = [f"--config={HERE / f'demo_{name}.yaml'}", f"--compare.out={OUT / name}", *sys.argv[1:]]
        status = subprocess.run([sys.executable, "-m", "lightning_znorm", "compare", *flags], check=False).returncode
        if status:
            sys.exit(status)
    print("\n" + "=" * 80)
    for name in COMPARISONS:
        print(f"\n{read_answer(OUT / name)}\n  See {OUT / name / 'report.html'}")
    print(f"\nDoes it help your own model?\n\n{OWN}")


if __name__ == "__main__":
    main()
