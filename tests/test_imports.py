"""What `import lightning_znorm` brings in, in a fresh interpreter."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_znorm

EXTRAS = {
    *("torchvision", "torchmetrics", "segmentation_models_pytorch", "matplotlib", "nilearn", "sklearn", "pandas"),
    *("cloudpickle", "jinja2", "rich", "scipy", "statsmodels"),
}
# what else may import extras: `compare` as it likes, the monitor only where it draws
ON_DEMAND = {"monitor.py": {"pandas", "matplotlib"}, "_gradient_picture.py": {"matplotlib"}}


def loaded_after(statement):
    """Top-level packages in `sys.modules` after a statement."""
    program = f"import sys; {statement}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    return set(done.stdout.split())


@pytest.mark.slow
def test_brings_in_no_extra():
    ours = loaded_after("import lightning_znorm")
    theirs = loaded_after("import lightning.pytorch, pytorch_lightning")
    # torchmetrics, which lightning imports, brings in some of them itself where they are installed
    assert not (ours - theirs) & (EXTRAS | {"jsonargparse"})
    assert ours - theirs <= {"lightning_znorm"}


def imported_by(nodes):
    """Top-level packages that import statements name."""
    names = []
    for node in nodes:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
    return {name.partition(".")[0] for name in names}


def test_which_modules_name_an_extra():
    """So that the core does not lean on what lightning happens to import."""
    package = Path(lightning_znorm.__file__).parent
    for file in package.rglob("*.py"):
        tree, place = ast.parse(file.read_text()), file.relative_to(package)
        extras = imported_by(ast.walk(tree)) & EXTRAS
        if place.parts[0] == "vision":
            names = re.findall(r"lightning_znorm\.(\w+)", file.read_text())
            assert set(names) <= {"vision"}, file
        elif place.parts[0] != "compare":
            assert extras <= ON_DEMAND.get(str(place), set()), file
            assert not imported_by(tree.body) & EXTRAS, file


@pytest.mark.slow
@pytest.mark.parametrize("package", ["lightning", "pytorch_lightning"])
def test_one_of_the_two_packages_is_enough(package):
    """The other one made unimportable."""
    other = {"lightning": "pytorch_lightning", "pytorch_lightning": "lightning"}[package]
    trainer = "lightning.pytorch" if package == "lightning" else "pytorch_lightning"
    program = f"""
import sys
sys.modules[{other!r}] = None
from importlib import import_module
from lightning_znorm import ZNorm
from lightning_znorm.cli import ZNormCLI
pl = import_module({trainer!r})
model = import_module({trainer!r} + ".demos.boring_classes").BoringModel
assert ZNorm.__mro__.count(pl.Callback) == 1
quiet = dict(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
pl.Trainer(max_steps=2, limit_val_batches=0, callbacks=[ZNorm()], **quiet).fit(model())
cli = ZNormCLI(model, run=False, args=["--znorm", "--trainer.accelerator=cpu", "--trainer.logger=false"])
assert isinstance(cli.trainer, pl.Trainer)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_neither_of_them_is_a_clear_error():
    program = "import sys; sys.modules['lightning'] = sys.modules['pytorch_lightning'] = None; import lightning_znorm"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode != 0
    assert "needs PyTorch Lightning. Install it: `pip install lightning`" in done.stderr
