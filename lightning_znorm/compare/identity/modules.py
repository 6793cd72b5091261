"""Which modules are the user's own, and what they import."""

import ast
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib.util import find_spec, resolve_name
from pathlib import Path
from types import ModuleType

_PACKAGE = __name__.partition(".")[0]


def is_installed(name: str) -> bool:
    """Say whether a module belongs to Python, to this package or to an installed one, not to the user's own code.

    Args:
        name: Of a module that is imported already.

    Example::

        >>> is_installed("torch.nn"), is_installed("json"), is_installed("__main__")
        (True, True, False)

    """
    if name.partition(".")[0] == _PACKAGE or name in sys.builtin_module_names:
        return True
    module = sys.modules.get(name)
    if module is None or name in ("__main__", "__mp_main__"):
        return False
    origin = getattr(module, "__file__", None)
    if origin is None:  # frozen, or a namespace package
        spec = getattr(module, "__spec__", None)
        return spec is not None and spec.origin in ("built-in", "frozen")
    return _is_installed_file(Path(origin))


def find_sources(names: Iterable[str]) -> dict[str, Path]:
    """Return the source files of the user's own modules among some, and of those that they import in turn.

    Args:
        names: Modules, imported already or not; those without a source file and installed ones are left out.

    """
    waiting, found = list(names), dict[str, Path]()
    while waiting:
        name = waiting.pop()
        path = _find_source(name)
        if name not in found and path is not None:
            found[name] = path
            waiting += _imported_names(name, path)
    return dict(sorted(found.items()))


def _find_source(name: str) -> Path | None:
    module = sys.modules.get(name)
    try:
        spec = None if module is not None else find_spec(name)
    except (ImportError, AttributeError, ValueError):
        return None
    origin = getattr(module, "__file__", None) or (spec.origin if spec is not None else None)
    if origin is None or not origin.endswith(".py") or name.partition(".")[0] == _PACKAGE:
        return None
    return None if _is_installed_file(Path(origin)) else Path(origin)


def _imported_names(name: str, path: Path) -> Iterator[str]:
    """Yield what a module imports, wherever in its source; some of the names may be no modules."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    try:
        nodes = [*ast.walk(ast.parse(path.read_bytes()))]
    except (OSError, SyntaxError, ValueError):
        return
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            try:
                base = resolve_name("." * node.level + (node.module or ""), package)
            except ImportError:
                continue
            yield from (base, *(f"{base}.{alias.name}" for alias in node.names))


def _is_installed_file(path: Path) -> bool:
    return any(path.resolve().is_relative_to(folder) for folder in _installed_folders())


def find_imports(names: Iterable[str]) -> list[str]:
    """Return the installed modules that the user's modules import, directly or through each other.

    Args:
        names: Modules to begin with, the user's own or installed ones; those that are not imported are left out.

    """
    waiting, seen, found = list(names), set(), dict[str, None]()
    while waiting:
        name = waiting.pop()
        module = sys.modules.get(name)
        if name in seen or module is None:
            continue
        seen.add(name)
        if is_installed(name):
            found[name] = None
        else:
            waiting += _mentioned_modules(module)
    return list(found)


def _mentioned_modules(module: ModuleType) -> list[str]:
    values = list(vars(module).values())
    names = [
        value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None) for value in values
    ]
    return [name for name in names if isinstance(name, str)]


@lru_cache(maxsize=1)
def _installed_folders() -> list[Path]:
    paths = [sysconfig.get_paths()[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    paths += [*site.getsitepackages(), site.getusersitepackages()]
    return list(dict.fromkeys(Path(path).resolve() for path in paths))
