"""Lightning under its two names, ``lightning.pytorch`` and ``pytorch_lightning``, joined into one set of bases."""

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

__all__ = [
    "Callback",
    "MisconfigurationException",
    "find_classes",
    "import_all",
    "import_lightning",
    "rank_zero_warn",
]

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def import_all(module: str) -> list[ModuleType]:
    """Import ``module`` (the package itself if it is empty) from each Lightning package that is installed."""
    found = [
        import_module(f"{package}.{module}".rstrip("."))
        for package in _PACKAGES
        if find_spec(package.partition(".")[0]) is not None
    ]
    if not found:
        raise ModuleNotFoundError("lightning_znorm needs PyTorch Lightning. Install it: `pip install lightning`.")
    return found


def import_lightning(module: str) -> ModuleType:
    """Import ``module`` from ``lightning.pytorch``, or from ``pytorch_lightning`` where only that is installed."""
    return import_all(module)[0]


def find_classes(module: str, *names: str) -> tuple[Any, ...]:
    """Return the classes of these names in each Lightning package that is installed, as ``isinstance`` takes them."""
    return tuple(getattr(found, name) for found in import_all(module) for name in names)


def _join(module: str, name: str) -> type:
    """Return a class that derives from ``name`` in every Lightning package that is installed."""
    bases = tuple(dict.fromkeys(getattr(found, name) for found in import_all(module)))
    return type(name, bases, {"__module__": __name__, "__doc__": bases[0].__doc__})


if TYPE_CHECKING:
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch.callbacks import Callback
    from lightning_utilities.core.rank_zero import rank_zero_warn
else:
    rank_zero_warn = import_lightning("utilities.rank_zero").rank_zero_warn
    Callback = _join("callbacks", "Callback")
    MisconfigurationException = _join("utilities.exceptions", "MisconfigurationException")
