"""Which transforms work on which optimizer, in a Trainer or attached, so that none transforms a gradient twice."""

from weakref import WeakKeyDictionary, ref

from torch.optim import Optimizer

from lightning_znorm._lightning import MisconfigurationError
from lightning_znorm.engine.transform import Transform

# a transform may refer to the optimizer, which would keep both alive
_claims: WeakKeyDictionary[Optimizer, list[tuple[ref[Transform], str]]] = WeakKeyDictionary()


def claim(optimizer: Optimizer, transform: Transform, relation: str) -> None:
    """Record that a transform works on an optimizer, until :func:`release`.

    Its relation to the optimizer, such as ``"attached to"``, is for the error of a second transform of the same kind.

    """
    claims = _claims.setdefault(optimizer, [])
    for reference, other_relation in claims:
        other = reference()
        if other is not None and (isinstance(other, transform._kind()) or isinstance(transform, other._kind())):
            name = other._kind().__name__
            raise MisconfigurationError(
                f"A `{name}` is {other_relation} the optimizer `{type(optimizer).__name__}` already; a second one would"
                f" transform each gradient twice. Keep one: leave `{name}` out of the Trainer's callbacks, or do not"
                " attach it (`handle.remove()` undoes `handle = attach(...)`)."
            )
    claims.append((ref(transform), relation))


def release(optimizer: Optimizer, transform: Transform) -> None:
    """Undo :func:`claim`."""
    _claims[optimizer] = [entry for entry in _claims.get(optimizer, []) if entry[0]() is not transform]
