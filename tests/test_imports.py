"""What `import lightning_znorm` and its names bring in, in a fresh interpreter."""

import ast
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_znorm
from tests.house import imported_names

EXTRAS = {
    *("torchvision", "torchmetrics", "segmentation_models_pytorch", "matplotlib", "nilearn", "sklearn", "pandas"),
    *("cloudpickle", "jinja2", "rich", "scipy", "statsmodels"),
}
# what else may import extras: `compare` as it likes, the monitor only where it draws
ON_DEMAND = {"monitor/callback.py": {"pandas", "matplotlib"}, "monitor/picture.py": {"matplotlib"}}


def loaded_after(*statements):
    """Top-level packages in `sys.modules` after each of the statements."""
    look = "print(*{name.partition('.')[0] for name in sys.modules})"
    program = "\n".join(["import sys", *(f"{statement}\n{look}" for statement in statements)])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return [set(line.split()) for line in done.stdout.splitlines()]


@pytest.mark.long
def test_brings_in_no_extra():
    # before it what torchmetrics, which lightning imports, brings in itself where it is installed
    before, after = loaded_after("import lightning.pytorch, pytorch_lightning", "from lightning_znorm import *")
    assert after - before == {"lightning_znorm"}


def test_the_package_alone_brings_in_nothing():
    (loaded,) = loaded_after("import lightning_znorm; lightning_znorm.__version__")
    assert not loaded & {"torch", "lightning", "pytorch_lightning", "jsonargparse", "numpy"}


def test_the_names_of_the_package():
    names = {}
    exec("from lightning_znorm import *", names)
    assert {*lightning_znorm.__all__} <= {*names}
    assert {*lightning_znorm.__all__, "__version__"} <= {*dir(lightning_znorm)}
    assert pickle.loads(pickle.dumps(lightning_znorm.ZNorm)) is lightning_znorm.ZNorm
    assert lightning_znorm.functional.znorm_ is lightning_znorm.znorm_  # modules that `import lightning_znorm` has
    with pytest.raises(AttributeError, match="module 'lightning_znorm' has no attribute 'ZNrom'"):
        lightning_znorm.ZNrom  # noqa: B018


def test_type_checkers_see_every_name():
    tree = ast.parse(Path(lightning_znorm.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == {name: f"lightning_znorm.{module}" for name, module in lightning_znorm._HOME.items()}
    assert sorted(seen) == sorted(lightning_znorm.__all__)


def imported_by(nodes):
    """Top-level packages that import statements name."""
    return {name.partition(".")[0] for node in nodes for name in imported_names(node)}


def test_which_modules_name_an_extra():
    """So that the core does not lean on what lightning happens to import."""
    package = Path(lightning_znorm.__file__).parent
    for file in package.rglob("*.py"):
        tree, place = ast.parse(file.read_text()), file.relative_to(package)
        extras = imported_by(ast.walk(tree)) & EXTRAS
        if place.parts[0] == "vision":
            names = re.findall(r"lightning_znorm\.(\w+)", file.read_text())
            assert set(names) <= {"errors", "vision"}, file
        elif place.parts[0] != "compare":
            assert extras <= ON_DEMAND.get(str(place), set()), file
            assert not imported_by(tree.body) & EXTRAS, file


@pytest.mark.long
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
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_neither_of_them_is_a_clear_error():
    neither = "import sys; sys.modules['lightning'] = sys.modules['pytorch_lightning'] = None"
    program = f"{neither}; from lightning_znorm import ZNorm"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "needs PyTorch Lightning. Install it: `pip install lightning`" in done.stderr
