"""Lightning under its two names, ``lightning.pytorch`` and ``pytorch_lightning``, joined into one set of bases."""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from lightning_utilities.core.rank_zero import rank_zero_warn

__all__ = ["Callback", "MisconfigurationException", "import_lightning", "rank_zero_warn"]

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def _import_all(module: str) -> list[ModuleType]:
    """Import ``module`` from each Lightning package that is installed."""
    found = []
    for package in _PACKAGES:
        try:
            found.append(import_module(f"{package}.{module}"))
        except ModuleNotFoundError as error:
            # an installed package with a broken dependency of its own must not pass for an absent one
            if error.name not in (package, package.partition(".")[0]):
                raise
    if not found:
        raise ModuleNotFoundError("lightning_znorm needs PyTorch Lightning. Install it: `pip install lightning`.")
    return found


def import_lightning(module: str) -> ModuleType:
    """Import ``module`` from ``lightning.pytorch``, or from ``pytorch_lightning`` where only that is installed."""
    return _import_all(module)[0]


def _join(module: str, name: str) -> type:
    """Return a class that derives from ``name`` in every Lightning package that is installed."""
    bases = tuple(dict.fromkeys(getattr(found, name) for found in _import_all(module)))
    return type(name, bases, {"__module__": __name__, "__doc__": bases[0].__doc__})


if TYPE_CHECKING:
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch.callbacks import Callback
else:
    Callback = _join("callbacks", "Callback")
    MisconfigurationException = _join("utilities.exceptions", "MisconfigurationException")
