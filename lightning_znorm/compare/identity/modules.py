"""Which modules are the user's, and what they import."""

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
    """Return whether an imported module belongs to Python or a package, not to the user's code.

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
    return is_installed_file(Path(origin))


def find_sources(names: Iterable[str]) -> dict[str, Path]:
    """Return the source files of the user's modules among some, and of the user's modules that these import."""
    queue, sources = list(names), dict[str, Path]()
    while queue:
        name = queue.pop()
        path = _find_source(name)
        if name not in sources and path is not None:
            sources[name] = path
            queue += _find_imported_names(name, path)
    return dict(sorted(sources.items()))


def _find_source(name: str) -> Path | None:
    module = sys.modules.get(name)
    try:
        spec = None if module is not None else find_spec(name)
    except (ImportError, AttributeError, ValueError):
        return None
    origin = getattr(module, "__file__", None) or (spec.origin if spec is not None else None)
    if origin is None or not origin.endswith(".py") or name.partition(".")[0] == _PACKAGE:
        return None
    return None if is_installed_file(Path(origin)) else Path(origin)


def _find_imported_names(name: str, path: Path) -> Iterator[str]:
    """Yield all names in the import statements of a module; not all are modules."""
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


def is_installed_file(path: Path) -> bool:
    """Return whether a file or folder belongs to Python or a package."""
    return any(path.resolve().is_relative_to(folder) for folder in _find_installed_folders())


def find_imports(names: Iterable[str]) -> list[str]:
    """Return the installed ones among some modules, and those that the user's modules among them import."""
    queue, visited, installed = list(names), set(), dict[str, None]()
    while queue:
        name = queue.pop()
        module = sys.modules.get(name)
        if name in visited or module is None:
            continue
        visited.add(name)
        if is_installed(name):
            installed[name] = None
        else:
            queue += _find_modules_of_globals(module)
    return list(installed)


def _find_modules_of_globals(module: ModuleType) -> list[str]:
    names = [
        value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        for value in list(vars(module).values())
    ]
    return [name for name in names if isinstance(name, str)]


@lru_cache(maxsize=1)
def _find_installed_folders() -> list[Path]:
    paths = [sysconfig.get_paths()[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    paths += [*site.getsitepackages(), site.getusersitepackages()]
    return list(dict.fromkeys(Path(path).resolve() for path in paths))
