"""What a Python object is, by value: the same in every process, whatever its hash seed and its addresses."""

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
_SHOWN = (bool, int, float, str, type(None))
_DEEPEST = 10_000  # calls of Python within each other
_LONGEST = 50  # of a collection whose items are described one by one
# of a class: what Python adds, and what says nothing about what it does
_NOT_OF_A_CLASS = {
    *("__dict__", "__weakref__", "__doc__", "__annotations__", "__abstractmethods__", "_abc_impl", "__module__"),
    *("__qualname__", "__firstlineno__", "__static_attributes__", "__parameters__", "__slotnames__"),
}


def python_generator() -> Any:
    """Return the generator behind the functions of :mod:`random`."""
    return getattr(random.random, "__self__", None)


def numpy_generator() -> Any:
    """Return the generator behind the functions of :mod:`numpy.random`."""
    return getattr(np.random.rand, "__self__", None)


GLOBAL_GENERATORS = (python_generator, numpy_generator)


def identify(value: Any) -> str:
    """Return a digest of a value, of all that it holds, and of the user's own code that it runs.

    Functions and classes of installed packages go by name, those of the user by bytecode, defaults, closures, and the
    globals and modules that they mention. Other objects go by class and state, as :mod:`pickle` would take them.
    Addresses, the order of sets, line numbers and comments do not count. What pickle cannot take goes by its class.

    Example::

        >>> def make(width):
        ...     return lambda lr: (width, lr)
        >>> identify(make(4)) == identify(make(4)), identify(make(4)) == identify(make(8))
        (True, False)

    """
    with _deep_recursion():
        return _Hasher().digest(value).hex()


def identify_code(modules: Iterable[str]) -> dict[str, str]:
    """Return a digest of the code of each of the user's own modules among some, and of those that they import."""
    walk = _Hasher()
    return {name: walk.source(path).hex()[:16] for name, path in find_sources(modules).items()}


def describe(value: Any) -> Any:
    """Return what a reader needs to tell a value from others, as JSON takes it, with its digest.

    Example::

        >>> from functools import partial
        >>> describe(partial(print, "a", sep="-"))["arguments"]
        {'0': 'a', 'sep': '-'}
        >>> describe(0.1)
        0.1

    """
    if type(value) in _SHOWN:
        return value
    if type(value) in (list, tuple) and len(value) <= _LONGEST:
        return [describe(item) for item in value]
    if type(value) is dict and len(value) <= _LONGEST and all(type(key) is str for key in value):
        return {key: describe(item) for key, item in value.items()}
    if isinstance(value, partial):
        arguments = {str(number): argument for number, argument in enumerate(value.args)} | value.keywords
        name, shown = f"partial of {_short_name(value.func)}", {"arguments": arguments}
    elif isinstance(value, (type, FunctionType, BuiltinFunctionType, MethodType)):
        name, shown = _short_name(value), {}
    else:
        public = {key: item for key, item in getattr(value, "__dict__", {}).items() if not key.startswith("_")}
        name, shown = _short_name(type(value)), {"attributes": public}
    simple = {
        group: {key: item for key, item in items.items() if type(item) in _SHOWN} for group, items in shown.items()
    }
    return {"name": name, **{group: items for group, items in simple.items() if items}, "digest": identify(value)[:16]}


def _name(value: Any) -> str:
    return f"{_module_name(value)}.{getattr(value, '__qualname__', type(value).__qualname__)}"


def _short_name(value: Any) -> str:
    """Return a name that cloudpickle keeps, as it does not keep the qualified one of a class."""
    return f"{_module_name(value)}.{getattr(value, '__name__', type(value).__name__)}"


def _module_name(value: Any) -> str:
    module = getattr(value, "__module__", None) or ""
    return "__main__" if module == "__mp_main__" else module


class _Hasher:
    """One walk through a value; what has been seen is not walked through again."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, bytes]] = {}  # the objects, too, so that their ids are not used again
        self._depths: dict[int, int] = {}
        self._sources: dict[Path, bytes] = {}

    def digest(self, value: Any) -> bytes:
        if type(value) in _ATOMS:
            return _hash(type(value).__name__, repr(value).encode())
        if id(value) in self._known:
            return self._known[id(value)][1]
        if id(value) in self._depths:
            return _hash("cycle", str(len(self._depths) - self._depths[id(value)]).encode())
        self._depths[id(value)] = len(self._depths)
        try:
            result = self._walk(value)
        finally:
            del self._depths[id(value)]
        self._known[id(value)] = (value, result)
        return result

    def _walk(self, value: Any) -> bytes:
        kind = type(value)
        if kind in (list, tuple):
            if all(type(item) in _ATOMS for item in value):
                return _hash(kind.__name__, repr(value).encode())
            return self._join(kind.__name__, value)
        if kind in (dict, MappingProxyType):  # a network may be built in its order
            return _hash(kind.__name__, *(self._join("item", item) for item in value.items()))
        if isinstance(value, (KeysView, ValuesView)):
            return self._join("view", value)
        if kind in (set, frozenset):
            return _hash(kind.__name__, *sorted(map(self.digest, value)))
        if isinstance(value, Tensor):
            return self._tensor(value)
        if kind is np.ndarray and value.dtype != object:
            return _hash(f"array {value.dtype.str} {value.shape}", np.ascontiguousarray(value).tobytes())
        if isinstance(value, enum.Enum):
            return self._join(f"enum {_name(kind)}.{value.name}", (value.value,))
        if isinstance(value, ModuleType):
            return self._modules([value.__name__])
        if any(value is find() for find in GLOBAL_GENERATORS):
            return _hash(f"global generator {_name(kind)}")  # whatever its state: each run seeds it
        if hasattr(value, "cache_info") and hasattr(value, "__wrapped__"):
            return self._join("cached", (value.__wrapped__,))
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, CodeType):
            return self._code(value)
        if isinstance(value, MethodType):
            return self._join("method", (value.__self__, value.__func__))
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, (staticmethod, classmethod)):
            return self._join(kind.__name__, (value.__func__,))
        if isinstance(value, property):
            return self._join("property", (value.fget, value.fset, value.fdel))
        return self._object(value)

    def _join(self, kind: str, values: Iterable[Any]) -> bytes:
        return _hash(kind, *map(self.digest, values))

    def _tensor(self, value: Tensor) -> bytes:
        kind = f"{_name(type(value))} {value.dtype} {value.layout} {value.requires_grad}"
        if is_lazy(value):
            return _hash(kind)
        kind += f" {tuple(value.shape)}"
        if value.is_meta:
            return _hash(kind)
        dense = value.detach() if value.layout is torch.strided else value.detach().to_dense()
        flat = dense.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        return _hash(kind, flat.view(torch.uint8).numpy().tobytes())

    def _function(self, function: FunctionType) -> bytes:
        if _is_installed(function):
            return _hash(f"function {_name(function)}")
        cells = [_content_of(cell) for cell in function.__closure__ or ()]
        names = sorted(_globals_of(function.__code__) & {*function.__globals__})
        mentioned = [(name, function.__globals__[name]) for name in names]
        imported = self._modules(_imports_of(function.__code__))
        parts = (function.__code__, function.__defaults__, function.__kwdefaults__, cells, mentioned, imported)
        return self._join(f"function {function.__name__}", parts)

    def _modules(self, names: Iterable[str]) -> bytes:
        names = sorted(names)
        sources = [self.source(path) for path in find_sources(names).values()]
        return _hash(f"modules {' '.join(names)}", *sources)

    def source(self, path: Path) -> bytes:
        """Digest a source file, of which line numbers and comments do not count."""
        if path not in self._sources:
            self._sources[path] = _hash("source")
            with suppress(OSError, SyntaxError, ValueError):
                self._sources[path] = self.digest(compile(path.read_bytes(), "", "exec", dont_inherit=True))
        return self._sources[path]

    def _code(self, code: CodeType) -> bytes:
        counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags, code.co_name)
        names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        return self._join("code", (counts, names, code.co_code, code.co_consts))

    def _class(self, cls: type) -> bytes:
        if _is_installed(cls):
            return _hash(f"class {_name(cls)}")
        inherited = {name: value for base in reversed(cls.__bases__) for name, value in vars(base).items()}
        members = [
            (name, value)
            for name, value in sorted(vars(cls).items())
            if name not in _NOT_OF_A_CLASS
            # those of slots belong to the class; `__slots__` itself is among the members
            and type(value).__name__ != "member_descriptor"
            # cloudpickle leaves out what a class shares with its bases
            and not (name in inherited and value is inherited[name])
        ]
        # not the qualified name, see `_short_name`
        return self._join(f"class {cls.__name__}", (cls.__bases__, members))

    def _object(self, value: Any) -> bytes:
        reduce = copyreg.dispatch_table.get(type(value))
        try:
            reduced = reduce(value) if reduce is not None else value.__reduce_ex__(4)
        except Exception:
            return self._join("opaque", (type(value),))
        if isinstance(reduced, str):
            return _hash(f"global {_name(type(value))} {reduced}")
        make, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
        parts = (type(value), make, arguments, state, list(items or ()), list(pairs or ()))
        return self._join("object", parts)


def _hash(kind: str, *parts: bytes) -> bytes:
    digest = hashlib.sha256(kind.encode())
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()


def _is_installed(value: Any) -> bool:
    """Say whether a class or function is found under its name in an installed module."""
    if not is_installed(value.__module__ or ""):
        return False
    found: Any = sys.modules.get(value.__module__)
    for name in value.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is value


def _globals_of(code: CodeType) -> set[str]:
    """Return all names that a function and those inside it may look up among its globals."""
    return _operands(code, ("LOAD_GLOBAL", "LOAD_NAME"))


def _imports_of(code: CodeType) -> set[str]:
    """Return the modules that a function and those inside it may import."""
    return _operands(code, ("IMPORT_NAME",))


def _operands(code: CodeType, operations: tuple[str, ...]) -> set[str]:
    names = {step.argval for step in dis.get_instructions(code) if step.opname in operations}
    return names.union(*[_operands(const, operations) for const in code.co_consts if isinstance(const, CodeType)])


@contextmanager
def _deep_recursion() -> Iterator[None]:
    """Allow for networks and classes that lead deep into each other."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, _DEEPEST))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def _content_of(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return Ellipsis


def differing_keys(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Return the keys under which two mappings have different values."""
    return [key for key in dict.fromkeys([*first, *second]) if first.get(key) != second.get(key)]
