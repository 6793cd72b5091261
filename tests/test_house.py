"""The rooms of the package and the arrows between them, as `docs/design.md` has them."""

import ast
from graphlib import CycleError, TopologicalSorter

import pytest

from tests import house

MODULES = house.read_modules(house.ROOT / house.PACKAGE)
IMPORTS = {module: others for module, others in house.find_imports(MODULES).items() if module != "__init__"}
FLOORS, ARROWS = house.read_page()
PRIVATE = {"_lightning.py", "_torch.py"}
# of which imports may wait until they are needed; `__main__` waits with all, so that its help is there at once
OPTIONAL = {
    "cloudpickle",
    "h5py",
    "jsonargparse",
    "matplotlib",
    "nilearn",
    "pandas",
    "pytorchcv",
    "sklearn",
    "timm",
    "yaml",
}


def test_every_room_is_on_the_page():
    assert {house.room_of(module) for module in IMPORTS} == set(FLOORS)


def test_no_import_leads_upwards():
    assert house.upward(IMPORTS, FLOORS) == []


def test_the_page_has_every_arrow():
    assert house.find_arrows(IMPORTS) == ARROWS


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("engine.pipeline", "from lightning_znorm.hosts.trainer import Fit"),
        ("engine.pipeline", "from lightning_znorm.hosts import trainer"),
        ("engine.pipeline", "import lightning_znorm.transform"),
        ("backends.cpu", "def f():\n    from lightning_znorm.functional import znorm_"),
        ("functional", "if TYPE_CHECKING:\n    from lightning_znorm.callbacks import ZNorm"),
        ("errors", "from lightning_znorm._lightning import MisconfigurationError"),
        ("vision._metrics", "from lightning_znorm.backends import reference"),
        ("callbacks", "from lightning_znorm.monitor import GradientMonitor"),
        ("compare.api", "from lightning_znorm.vision import Digits"),
    ],
)
def test_a_planted_import_is_found(module, line):
    planted = house.find_imports({**MODULES, module: f"{MODULES[module]}\n{line}\n"})
    assert len(house.upward(planted, FLOORS | {"__init__": 9})) == 1


def test_no_circle():
    TopologicalSorter(IMPORTS).prepare()
    with pytest.raises(CycleError):
        TopologicalSorter({**IMPORTS, "engine.nonfinite": {"engine.pipeline"}}).prepare()


def test_only_two_private_files_at_the_top():
    top = {file.name for file in (house.ROOT / house.PACKAGE).glob("*.py")}
    assert {name for name in top if name.startswith("_") and not name.startswith("__")} == PRIVATE


def test_imports_inside_functions_are_of_optional_packages():
    found = set()
    for module, source in MODULES.items():
        functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
        nodes = {node for function in functions for node in ast.walk(function)}
        found |= {(module, name.partition(".")[0]) for node in nodes for name in house.imported_names(node)}
    assert {name for module, name in found if module != "__main__"} <= OPTIONAL


def test_the_picture_is_that_of_the_page():
    assert house.PICTURE.read_text() == house.draw(FLOORS, ARROWS), "run `python -m tests.house`"
