"""What a run depends on, by value, in whatever process it is looked at."""

import functools
import json
import logging
import os
import pickle
import random
import subprocess
import sys
import threading
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import MappingProxyType

import cloudpickle
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from lightning_znorm.compare.identity.modules import find_imports, is_installed
from lightning_znorm.compare.identity.values import describe, differing_keys, identify, identify_code
from lightning_znorm.compare.question.methods import Method, label_methods
from lightning_znorm.compare.question.run import Run, Setting
from tests import warm
from tests.compare import odd
from tests.compare.helpers import ROOT
from tests.compare.tiny import TinyData, TinyModel

WIDTH = 4
LOGGER = logging.getLogger(__name__)


class Color(Enum):
    RED = 1
    BLUE = 2


@dataclass
class Options:
    names: list
    table: dict


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value


def closure(value):
    return lambda lr: (value, lr)


def with_default(lr, width=WIDTH):
    return lr, width


def code(source):
    """A function of a script, made of its source."""
    namespace = {"__name__": "__main__"}
    exec(source, namespace)
    return namespace["make"]


def with_buffer(value):
    module = nn.Linear(2, 2)
    module.register_buffer("buffer", torch.tensor([value]))
    with torch.no_grad():
        module.weight.zero_(), module.bias.zero_()
    return module


DIFFERENT = {
    "partials": (functools.partial(TinyModel, lr=0.3), functools.partial(TinyModel, lr=1e-9)),
    "closures": (closure(4), closure(8)),
    "closures over functions": (closure(closure(1)), closure(closure(2))),
    "defaults": (code("def make(lr=1): pass"), code("def make(lr=2): pass")),
    "bodies": (code("def make(lr): return lr"), code("def make(lr): return lr + 1")),
    "globals": (code("A = 1\ndef make(lr): return A"), code("A = 2\ndef make(lr): return A")),
    "globals of inner functions": (
        code("A = 1\ndef make(lr): return lambda: A"),
        code("A = 2\ndef make(lr): return lambda: A"),
    ),
    "classes of a script": (
        code("class make:\n def f(self): return 1"),
        code("class make:\n def f(self): return 2"),
    ),
    "bases of a class": (
        code("class A: x = 1\nclass make(A): pass"),
        code("class A: x = 2\nclass make(A): pass"),
    ),
    "data modules": (TinyData(20), TinyData(200)),
    "lists": (["a"], ["b"]),
    "dictionaries": ({"a": 1}, {"a": 2}),
    "sets": ({1, 2}, {1, 3}),
    "types": (1, 1.0),
    "tuples and lists": ((1,), [1]),
    "text and bytes": ("a", b"a"),
    "enumerations": (Color.RED, Color.BLUE),
    "dataclasses": (Options(["a"], {}), Options(["a"], {"b": 1})),
    "slots": (Slotted(1), Slotted(2)),
    "tensors": (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])),
    "dtypes": (torch.zeros(2), torch.zeros(2, dtype=torch.float16)),
    "shapes": (torch.zeros(2, 1), torch.zeros(1, 2)),
    "buffers of a module": (with_buffer(1.0), with_buffer(2.0)),
    "arrays": (np.array([1, 2]), np.array([1, 3])),
    "arrays of objects": (np.array([{"a": 1}, None]), np.array([{"a": 2}, None])),
    "frames": (pd.DataFrame({"a": [1]}), pd.DataFrame({"a": [2]})),
    "generators": (torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)),
    "methods of objects": (TinyData(20)._loader, TinyData(40)._loader),
    "read-only dictionaries": (MappingProxyType({"a": 1}), MappingProxyType({"a": 2})),
    "views of dictionaries": ({"a": 1}.keys(), {"b": 1}.keys()),
    "values of enumerations": (Enum("Size", {"ONE": 1}).ONE, Enum("Size", {"ONE": 2}).ONE),
    "order of arguments": (functools.partial(print, a=1, b=2), functools.partial(print, b=2, a=1)),
    "bound arguments": (functools.partial(print, {"deep": [1]}), functools.partial(print, {"deep": [2]})),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_differs_has_another_identity(name):
    first, second = DIFFERENT[name]
    assert identify(first) != identify(second)
    assert identify(first) == identify(cloudpickle.loads(cloudpickle.dumps(first)))


def test_order_of_sets_addresses_and_lines_do_not_count():
    assert identify({"a": 1, "b": 2}) != identify({"b": 2, "a": 1})  # a network may be built in this order
    assert identify(object()) == identify(object())
    source = "def make(lr):\n    return lr"
    assert identify(code(source)) == identify(code("# a comment\n\n" + source))
    numbers = list(range(100))
    random.shuffle(numbers)
    assert identify({*map(str, numbers)}) == identify({*map(str, range(100))})


def test_what_cannot_be_pickled_goes_by_its_class():
    assert identify(threading.Lock()) == identify(threading.Lock())
    assert identify(threading.Lock()) != identify(threading.RLock())


def test_a_class_stays_what_it_is_when_its_objects_are_pickled():
    class Local:
        pass

    before = identify(Local)
    identify(Local())  # copyreg leaves a note in the class
    assert identify(Local) == before


def test_classes_of_a_function_are_recognized_where_they_arrive():
    class Small(nn.Tanh):
        pass

    class Large(nn.Tanh):
        size = 2

    script = "import pickle; from lightning_znorm.compare.identity.values import identify;"
    script += "print(*map(identify, pickle.load(open('values', 'rb'))))"
    values = [Small, Large, lambda: Small, functools.partial(Small)]
    Path("values").write_bytes(cloudpickle.dumps(values))
    done = warm.run("-c", script, env={"PYTHONPATH": str(ROOT)})
    assert done.stdout.split() == [*map(identify, values)], done.stderr
    assert len({*map(identify, values)}) == 4


def test_what_contains_itself():
    first, second = [1], [2]
    first.append(first), second.append(second)
    assert identify(first) == identify(cloudpickle.loads(cloudpickle.dumps(first)))
    assert identify(first) != identify(second)


@pytest.mark.long
def test_a_process_with_another_hash_seed_sees_the_same():
    """Also where the order of a set, a random name or an address might creep in."""
    script = """
import json
from tests.compare.test_identity import DIFFERENT, Color, LOGGER, with_default
from lightning_znorm.compare.identity.values import identify
values = {name: pair[0] for name, pair in DIFFERENT.items()}
values |= {"many": {Color.RED, "a", 3, 2.5, None, frozenset("abc")}, "logger": LOGGER, "default": with_default}
class Local:
    table = {"x", "y", "z"}
    def make(self): return {"p", "q"}
values |= {"local": Local, "instance": Local(), "lambda": lambda: Local().make()}
print(json.dumps({name: identify(value) for name, value in values.items()}))
"""

    def run(seed):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    first, second = run("1"), run("2")
    assert len(first) == len(DIFFERENT) + 6
    assert not differing_keys(first, second)


def test_a_description_names_what_a_reader_knows():
    described = describe(functools.partial(TinyModel, lr=0.3))
    assert described["name"] == "partial of tests.compare.tiny.TinyModel"
    assert described["arguments"] == {"lr": 0.3}
    assert describe(TinyData(20))["attributes"]["batch_size"] == 20
    assert describe([1, {"a": None}]) == [1, {"a": None}]
    assert json.loads(json.dumps(describe([TinyData(20), torch.zeros(3)])))


def test_runs_of_callbacks_with_other_arguments_have_keys_of_their_own():
    class Mine(odd.Drawing):
        def __init__(self, layers, table=None):
            self.layers, self.table = layers, table

    methods = {"a": Mine(["a"]), "b": Mine(["b"]), "c": Mine(["a"], {"x": 1}), "d": Mine(["a"], {"x": 2})}
    keys = {Run(Method("m", callbacks=method.callbacks), Setting(), 0).key for method in label_methods(methods)}
    assert len(keys) == 4
    again = Run(Method("m", callbacks=label_methods({"a": Mine(["a"])})[0].callbacks), Setting(), 0).key
    assert again in keys


def test_what_a_process_has_seen_of_a_method_stays_there():
    """Another one would otherwise confirm what it has not looked at."""
    (method,) = label_methods({"drawing": odd.Drawing()})
    seen = method.identity
    arrived = pickle.loads(pickle.dumps(method))
    assert [*vars(arrived)] == [name for name in vars(method) if name != "identity"]
    assert arrived.identity == seen


def test_runs_of_settings_that_are_objects():
    def key(value):
        return Run(Method("none"), Setting(0, {"x": value}), 0).key.rpartition("-")[2]

    assert key(Slotted(1)) == key(Slotted(1))
    assert len({key(value) for value in (Slotted(1), Slotted(2), closure(1))}) == 3


def test_functions_and_attributes_of_one_name(monkeypatch):
    """The name of an attribute is no global, which would not travel with the function."""
    first = code("config = 1\ndef make(self): return self.config")
    second = code("config = 2\ndef make(self): return self.config")
    assert identify(first) == identify(second)


def test_members_that_a_class_shares_with_its_base():
    @dataclass
    class Base:
        x: int = 0

    @dataclass
    class Derived(Base):
        debug = False

    values = [Base, Derived, Derived()]
    assert [*map(identify, cloudpickle.loads(cloudpickle.dumps(values)))] == [*map(identify, values)]


def test_functions_that_mention_each_other():
    mutual = code(
        "def a(): return b, c\ndef b(): return c, a\ndef c(): return a, b\ndef make(): return a, b, c\n"
        "class A:\n def f(self): return B\nclass B:\n def f(self): return A, make"
    )
    assert identify(mutual) == identify(cloudpickle.loads(cloudpickle.dumps(mutual)))


def test_global_generators_go_by_name():
    drawing = code(
        "from random import randint\nfrom numpy.random import rand\ndef make(): return randint(0, 9), rand()"
    )
    before = identify(drawing)
    random.random(), np.random.rand()
    assert identify(drawing) == before


def test_deep_networks():
    network = nn.Identity()
    for _ in range(200):
        network = nn.Sequential(network)
    assert identify(network) != identify(nn.Sequential(network))


def test_cached_functions_go_by_what_they_wrap():
    first, second = (functools.cache(code(f"def make(): return {number}")) for number in (1, 2))
    assert identify(first) != identify(second)


def test_the_code_of_modules_counts(monkeypatch):
    """Of those that a function mentions or imports, and of those that these import."""
    monkeypatch.syspath_prepend(Path.cwd())
    Path("deep_module.py").write_text("WIDTH = 1")
    Path("own_module.py").write_text("from deep_module import WIDTH\ndef build(): return WIDTH")
    functions = [
        code("import own_module\ndef make(): return own_module.build()"),
        code("def make():\n import own_module\n return own_module.build()"),
        code("def make():\n from own_module import build\n return build()"),
    ]
    before = [*map(identify, functions), str(identify_code(["own_module"]))]
    assert len({*before}) == 4
    assert [*identify_code(["own_module", "torch"])] == ["deep_module", "own_module"]
    Path("deep_module.py").write_text("WIDTH = 1  # a comment")
    assert [*map(identify, functions), str(identify_code(["own_module"]))] == before
    Path("deep_module.py").write_text("WIDTH = 2")
    after = [*map(identify, functions), str(identify_code(["own_module"]))]
    assert not {*before} & {*after}


def test_modules_of_the_user():
    assert is_installed("torch.nn")
    assert is_installed("json")
    assert is_installed("sys")
    assert is_installed("lightning_znorm.callbacks")
    assert not is_installed("tests.compare.odd")
    assert not is_installed("no_such_module")
    found = find_imports(["tests.compare.odd"])
    assert "torch.utils.data.dataset" in found
    # of the module that it imports
    assert "jsonargparse.typing" in found or "lightning.pytorch" in found
    assert not [name for name in found if name.startswith("tests")]
