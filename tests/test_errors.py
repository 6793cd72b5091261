"""Errors raised on purpose: of which classes they are, and that nothing else is raised for the user."""

import ast
import gc
import pickle
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

import lightning_znorm
from lightning_znorm import ZNormError, errors
from lightning_znorm._lightning import MisconfigurationError, find_classes
from lightning_znorm.errors import DataError, did_you_mean, require_fraction, require_packages, user_message

BUILT_IN = {
    "ArgumentTypeError": TypeError,
    "ArgumentValueError": ValueError,
    "CollectiveError": RuntimeError,
    "ComparisonError": ValueError,
    "DataError": ValueError,
    "DownloadError": RuntimeError,
    "FileError": OSError,
    "MissingFileError": FileNotFoundError,
    "MissingPackageError": ModuleNotFoundError,
    "NonfiniteGradientError": RuntimeError,
}
ANONYMOUS = {"ValueError", "TypeError", "ImportError", "ModuleNotFoundError", "OSError", "FileNotFoundError"}
ANONYMOUS |= {"MisconfigurationException"}


def test_every_documented_class_is_here():
    assert {*errors.__all__} == {*BUILT_IN, "ZNormError"}
    page = (Path(__file__).parents[1] / "docs/api.md").read_text()
    assert ".. automodule:: lightning_znorm.errors\n   :members:\n" in page


@pytest.mark.parametrize(("name", "built_in"), BUILT_IN.items())
def test_caught_as_built_in_and_as_ours(name, built_in):
    cls = getattr(errors, name)
    for expected in (built_in, ZNormError):
        with pytest.raises(expected, match="the message"):
            raise cls("the message")
    copy = pickle.loads(pickle.dumps(cls("the message")))
    assert type(copy) is cls
    assert str(copy) == "the message"


def test_misconfiguration_is_that_of_each_lightning_package():
    for expected in (ZNormError, *find_classes("utilities.exceptions", "MisconfigurationException")):
        with pytest.raises(expected, match="the message"):
            raise MisconfigurationError("the message")
    assert type(pickle.loads(pickle.dumps(MisconfigurationError("a")))) is MisconfigurationError


def find_anonymous(tree):
    """Lines that make or raise an error of a built-in class that stands for a mistake of the user."""
    named = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    named += [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise)]
    return sorted(node.lineno for node in named if isinstance(node, ast.Name) and node.id in ANONYMOUS)


def test_what_the_search_finds():
    source = (
        "raise ValueError\nraise TypeError('a')\nreturn OSError(1)\nexcept ValueError:\nraise RuntimeError('b')\nraise"
    )
    lines = [line if line[:6] != "except" else f"try: pass\n{line} pass" for line in source.splitlines()]
    found = [bool(find_anonymous(ast.parse(line))) for line in lines]
    assert found == [True, True, True, False, False, False]


def test_errors_for_the_user_have_classes_of_their_own():
    package = Path(lightning_znorm.__file__).parent
    for file in package.rglob("*.py"):
        assert not find_anonymous(ast.parse(file.read_text())), file.relative_to(package)


def test_several_missing_packages_are_named_at_once():
    with pytest.raises(ModuleNotFoundError) as caught:
        require_packages("`fly`", "wings", "sys", "sklearn_2", "numpy", "wing")
    assert caught.value.name == "sklearn_2"
    assert str(caught.value) == (
        '`fly` needs sklearn_2, wing, which are not installed. Install them: `pip install "lightning-znorm[wings]"`.'
    )


def test_a_package_is_named_as_it_is_installed(monkeypatch):
    monkeypatch.setattr(errors, "find_spec", lambda module: None)
    with pytest.raises(ModuleNotFoundError, match="needs scikit-learn, which is not"):
        require_packages("`fly`", "wings", "sklearn")


def test_the_nearest_name_in_upper_or_lower_case():
    assert did_you_mean("ADMA", ["SGD", "Adam"]) == " Did you mean 'Adam'?"
    assert did_you_mean("Quux", ["SGD", "Adam"]) == ""


@pytest.mark.parametrize("value", [0, 1, -0.1, 1.5, float("nan"), "0.5", True, None])
def test_what_is_no_share(value):
    with pytest.raises(ValueError, match="`val_share` to be between 0 and 1"):
        require_fraction("val_share", value)
    assert require_fraction("val_share", 0.5) == 0.5


class Damaged:
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise DataError("0.png is not\na readable image.")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_message_of_a_worker_of_a_data_loader(num_workers):
    try:
        next(iter(DataLoader(Damaged(), num_workers=num_workers)))
    except DataError as error:
        message = user_message(error)
    gc.collect()  # the traceback holds the iterator, which ends its worker when it goes
    assert message == "0.png is not\na readable image."
