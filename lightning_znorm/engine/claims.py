"""Which transforms are at work on which optimizer, whoever makes its steps, so that none works twice."""

from weakref import WeakKeyDictionary, ref

from torch.optim import Optimizer

from lightning_znorm._lightning import MisconfigurationError
from lightning_znorm.engine.transform import Transform

# a transform may know the optimizer, which would keep both alive
_claims: WeakKeyDictionary[Optimizer, list[tuple[ref[Transform], str]]] = WeakKeyDictionary()


def claim(optimizer: Optimizer, transform: Transform, way: str) -> None:
    """Note that a transform is at work on an optimizer, until :func:`release`.

    Args:
        optimizer: The optimizer.
        transform: The transform.
        way: How it got there, for the error of the next one.

    Raises:
        MisconfigurationError: If one of the same kind is.

    """
    claims = _claims.setdefault(optimizer, [])
    for reference, way_of_other in claims:
        other = reference()
        if other is not None and (isinstance(other, transform._kind()) or isinstance(transform, other._kind())):
            name = other._kind().__name__
            raise MisconfigurationError(
                f"A `{name}` is {way_of_other} the optimizer `{type(optimizer).__name__}` already; a second one would"
                f" transform each gradient twice. Keep one: leave `{name}` out of the Trainer's callbacks, or do not"
                " attach it (`handle.remove()` undoes `handle = attach(...)`)."
            )
    claims.append((ref(transform), way))


def release(optimizer: Optimizer, transform: Transform) -> None:
    """Forget :func:`claim`."""
    _claims[optimizer] = [entry for entry in _claims.get(optimizer, []) if entry[0]() is not transform]
