"""The rooms of the package and the arrows between them, as `docs/design.md` has them."""

import ast
from graphlib import CycleError, TopologicalSorter

import pytest

from tests import house

MODULES = house.read_modules(house.ROOT / house.PACKAGE)
IMPORTS = {module: others for module, others in house.find_imports(MODULES).items() if module != "__init__"}
HOUSE = (IMPORTS, *house.read_page("The house"))
COMPARE = (house.within(IMPORTS, "compare"), *house.read_page("Inside compare"))
FLOORS = HOUSE[1]
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


@pytest.mark.parametrize(("imports", "floors", "arrows"), [HOUSE, COMPARE], ids=["house", "compare"])
def test_the_page_has_every_room_and_arrow_and_none_leads_upwards(imports, floors, arrows):
    assert {house.room_of(module) for module in imports} == set(floors)
    assert house.upward(imports, floors) == []
    assert house.find_arrows(imports) == arrows


def plant(module, line):
    """The imports of the package if a module had a line more."""
    return house.find_imports({**MODULES, module: f"{MODULES[module]}\n{line}\n"})


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
    assert len(house.upward(plant(module, line), FLOORS | {"__init__": 9})) == 1


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("compare.runs.store", "from lightning_znorm.compare.executors.base import Event"),
        ("compare.question.run", "from lightning_znorm.compare.runs.result import RunResult"),
        ("compare.executors.base", "from lightning_znorm.compare.report.findings import Findings"),
        ("compare.report.pages", "from lightning_znorm.compare.comparison import Outcome"),
        ("compare.trial", "import lightning_znorm.compare.command"),
    ],
)
def test_a_planted_import_inside_compare_is_found(module, line):
    assert len(house.upward(house.within(plant(module, line), "compare"), COMPARE[1])) == 1


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


@pytest.mark.parametrize("section", house.PICTURES)
def test_the_picture_is_that_of_the_page(section):
    picture = house.draw(*house.read_page(section))
    assert house.PICTURES[section].read_text() == picture, "run `python -m tests.house`"
