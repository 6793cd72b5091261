"""Digests of Python objects by value, the same in every process."""

import copyreg
import dis
import enum
import hashlib
import random
import sys
from collections.abc import Iterable, Iterator, KeysView, Mapping, ValuesView
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from lightning_znorm.compare.identity.modules import find_sources, is_installed

_ATOMS = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis), type(NotImplemented))
_PLAIN_TYPES = (bool, int, float, str, type(None))
_RECURSION_LIMIT = 10_000
_MAX_ITEMS = 50  # of a collection whose items are described one by one
# attributes of a class that Python adds, or that do not affect its behavior
_IGNORED_ATTRIBUTES = {
    *("__dict__", "__weakref__", "__doc__", "__annotations__", "__abstractmethods__", "_abc_impl", "__module__"),
    *("__qualname__", "__firstlineno__", "__static_attributes__", "__parameters__", "__slotnames__"),
}


def find_python_generator() -> Any:
    """Return the generator behind the functions of :mod:`random`."""
    return getattr(random.random, "__self__", None)


def find_numpy_generator() -> Any:
    """Return the generator behind the functions of :mod:`numpy.random`."""
    return getattr(np.random.rand, "__self__", None)


GENERATOR_FINDERS = (find_python_generator, find_numpy_generator)


def identify(value: Any) -> str:
    """Return a digest of a value, of its contents, and of the user's code that it runs.

    Functions and classes of installed packages count by name, those of the user by bytecode, defaults, closures, and
    the globals and modules that they use. Other objects count by class and pickled state, those that :mod:`pickle`
    cannot save by class. Addresses, the order of sets, line numbers and comments do not count.

    Example::

        >>> def make(width):
        ...     return lambda lr: (width, lr)
        >>> identify(make(4)) == identify(make(4)), identify(make(4)) == identify(make(8))
        (True, False)

    """
    with _deep_recursion():
        return _Hasher().digest(value).hex()


def identify_code(modules: Iterable[str]) -> dict[str, str]:
    """Return a digest of the code of each of the user's modules among some, and of those that they import."""
    hasher = _Hasher()
    return {name: hasher.digest_source(path).hex()[:16] for name, path in find_sources(modules).items()}


def describe(value: Any) -> Any:
    """Return a readable description of a value for JSON, with its digest.

    Example::

        >>> from functools import partial
        >>> describe(partial(print, "a", sep="-"))["arguments"]
        {'0': 'a', 'sep': '-'}
        >>> describe(0.1)
        0.1

    """
    if type(value) in _PLAIN_TYPES:
        return value
    if type(value) in (list, tuple) and len(value) <= _MAX_ITEMS:
        return [describe(item) for item in value]
    if type(value) is dict and len(value) <= _MAX_ITEMS and all(type(key) is str for key in value):
        return {key: describe(item) for key, item in value.items()}
    if isinstance(value, partial):
        arguments = {str(number): argument for number, argument in enumerate(value.args)} | value.keywords
        name, groups = f"partial of {_get_short_name(value.func)}", {"arguments": arguments}
    elif isinstance(value, (type, FunctionType, BuiltinFunctionType, MethodType)):
        name, groups = _get_short_name(value), {}
    else:
        public = {key: item for key, item in getattr(value, "__dict__", {}).items() if not key.startswith("_")}
        name, groups = _get_short_name(type(value)), {"attributes": public}
    description: dict[str, Any] = {"name": name}
    for group, items in groups.items():
        if plain := {key: item for key, item in items.items() if type(item) in _PLAIN_TYPES}:
            description[group] = plain
    return description | {"digest": identify(value)[:16]}


def _get_name(value: Any) -> str:
    return f"{_get_module_name(value)}.{getattr(value, '__qualname__', type(value).__qualname__)}"


def _get_short_name(value: Any) -> str:
    """Return a name that survives cloudpickle, unlike the qualified name of a class."""
    return f"{_get_module_name(value)}.{getattr(value, '__name__', type(value).__name__)}"


def _get_module_name(value: Any) -> str:
    module = getattr(value, "__module__", None) or ""
    return "__main__" if module == "__mp_main__" else module


class _Hasher:
    """Digests of a value and its contents, each of which is visited once."""

    def __init__(self) -> None:
        self._digests: dict[int, tuple[Any, bytes]] = {}  # with the objects, so that their ids are not reused
        self._depths: dict[int, int] = {}
        self._sources: dict[Path, bytes] = {}

    def digest(self, value: Any) -> bytes:
        if type(value) in _ATOMS:
            return _hash(type(value).__name__, repr(value).encode())
        if id(value) in self._digests:
            return self._digests[id(value)][1]
        if id(value) in self._depths:
            return _hash("cycle", str(len(self._depths) - self._depths[id(value)]).encode())
        self._depths[id(value)] = len(self._depths)
        try:
            result = self._digest_uncached(value)
        finally:
            del self._depths[id(value)]
        self._digests[id(value)] = (value, result)
        return result

    def _digest_uncached(self, value: Any) -> bytes:
        kind = type(value)
        if kind in (list, tuple):
            if all(type(item) in _ATOMS for item in value):
                return _hash(kind.__name__, repr(value).encode())
            return self._join(kind.__name__, value)
        if kind in (dict, MappingProxyType):  # a module may be built in this order
            return _hash(kind.__name__, *(self._join("item", item) for item in value.items()))
        if isinstance(value, (KeysView, ValuesView)):
            return self._join("view", value)
        if kind in (set, frozenset):
            return _hash(kind.__name__, *sorted(map(self.digest, value)))
        if isinstance(value, Tensor):
            return self._digest_tensor(value)
        if kind is np.ndarray and value.dtype != object:
            return _hash(f"array {value.dtype.str} {value.shape}", np.ascontiguousarray(value).tobytes())
        if isinstance(value, enum.Enum):
            return self._join(f"enum {_get_name(kind)}.{value.name}", (value.value,))
        if isinstance(value, ModuleType):
            return self._digest_modules([value.__name__])
        if any(value is find() for find in GENERATOR_FINDERS):
            return _hash(f"global generator {_get_name(kind)}")  # without its state, which each run seeds
        if hasattr(value, "cache_info") and hasattr(value, "__wrapped__"):
            return self._join("cached", (value.__wrapped__,))
        if isinstance(value, FunctionType):
            return self._digest_function(value)
        if isinstance(value, CodeType):
            return self._digest_code(value)
        if isinstance(value, MethodType):
            return self._join("method", (value.__self__, value.__func__))
        if isinstance(value, type):
            return self._digest_class(value)
        if isinstance(value, (staticmethod, classmethod)):
            return self._join(kind.__name__, (value.__func__,))
        if isinstance(value, property):
            return self._join("property", (value.fget, value.fset, value.fdel))
        return self._digest_object(value)

    def _join(self, kind: str, values: Iterable[Any]) -> bytes:
        return _hash(kind, *map(self.digest, values))

    def _digest_tensor(self, value: Tensor) -> bytes:
        kind = f"{_get_name(type(value))} {value.dtype} {value.layout} {value.requires_grad}"
        if is_lazy(value):
            return _hash(kind)
        kind += f" {tuple(value.shape)}"
        if value.is_meta:
            return _hash(kind)
        dense = value.detach() if value.layout is torch.strided else value.detach().to_dense()
        flat = dense.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        return _hash(kind, flat.view(torch.uint8).numpy().tobytes())

    def _digest_function(self, function: FunctionType) -> bytes:
        if _is_installed(function):
            return _hash(f"function {_get_name(function)}")
        cells = [_get_content(cell) for cell in function.__closure__ or ()]
        names = sorted(_find_operands(function.__code__, "LOAD_GLOBAL", "LOAD_NAME") & {*function.__globals__})
        used = [(name, function.__globals__[name]) for name in names]
        imported = self._digest_modules(_find_operands(function.__code__, "IMPORT_NAME"))
        contents = (function.__code__, function.__defaults__, function.__kwdefaults__, cells, used, imported)
        return self._join(f"function {function.__name__}", contents)

    def _digest_modules(self, names: Iterable[str]) -> bytes:
        names = sorted(names)
        sources = [self.digest_source(path) for path in find_sources(names).values()]
        return _hash(f"modules {' '.join(names)}", *sources)

    def digest_source(self, path: Path) -> bytes:
        """Digest a source file without its line numbers and comments."""
        if path not in self._sources:
            self._sources[path] = _hash("source")
            with suppress(OSError, SyntaxError, ValueError):
                self._sources[path] = self.digest(compile(path.read_bytes(), "", "exec", dont_inherit=True))
        return self._sources[path]

    def _digest_code(self, code: CodeType) -> bytes:
        counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags, code.co_name)
        names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        return self._join("code", (counts, names, code.co_code, code.co_consts))

    def _digest_class(self, cls: type) -> bytes:
        if _is_installed(cls):
            return _hash(f"class {_get_name(cls)}")
        inherited = {name: value for base in reversed(cls.__bases__) for name, value in vars(base).items()}
        members = [
            (name, value)
            for name, value in sorted(vars(cls).items())
            if name not in _IGNORED_ATTRIBUTES
            # `__slots__` itself is among the members
            and type(value).__name__ != "member_descriptor"
            # cloudpickle leaves out members that a class shares with its bases
            and not (name in inherited and value is inherited[name])
        ]
        # not the qualified name, see `_get_short_name`
        return self._join(f"class {cls.__name__}", (cls.__bases__, members))

    def _digest_object(self, value: Any) -> bytes:
        reduce = copyreg.dispatch_table.get(type(value))
        try:
            reduced = reduce(value) if reduce is not None else value.__reduce_ex__(4)
        except Exception:
            return self._join("opaque", (type(value),))
        if isinstance(reduced, str):
            return _hash(f"global {_get_name(type(value))} {reduced}")
        make, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
        contents = (type(value), make, arguments, state, list(items or ()), list(pairs or ()))
        return self._join("object", contents)


def _hash(kind: str, *parts: bytes) -> bytes:
    digest = hashlib.sha256(kind.encode())
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()


def _is_installed(value: Any) -> bool:
    """Return whether an installed module has a class or function under its name."""
    if not is_installed(value.__module__ or ""):
        return False
    attribute: Any = sys.modules.get(value.__module__)
    for name in value.__qualname__.split("."):
        attribute = getattr(attribute, name, None)
    return attribute is value


def _find_operands(code: CodeType, *operations: str) -> set[str]:
    """Return the operands of some operations in a function and in the functions inside it."""
    names = {step.argval for step in dis.get_instructions(code) if step.opname in operations}
    return names.union(*[_find_operands(const, *operations) for const in code.co_consts if isinstance(const, CodeType)])


@contextmanager
def _deep_recursion() -> Iterator[None]:
    """Raise the recursion limit for deeply nested modules."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, _RECURSION_LIMIT))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def _get_content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return Ellipsis


def differing_keys(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Return the keys under which two mappings have different values."""
    return [key for key in dict.fromkeys([*first, *second]) if first.get(key) != second.get(key)]
