"""A temporary replacement of a method of a LightningModule."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import lightning.pytorch as pl


class Substitute:
    """Replaces a method of one module until :meth:`release`; in copies of the module it only calls the method.

    Args:
        pl_module: The module.
        name: Name of the method.
        wrapper: Called with the method and its arguments instead of the method.

    """

    def __init__(self, pl_module: "pl.LightningModule", name: str, wrapper: Callable[..., Any]) -> None:
        self._pl_module, self._name = pl_module, name
        self._wrapper: Callable[..., Any] | None = wrapper
        self._original = getattr(pl_module, name)
        self._was_on_instance = name in vars(pl_module)
        setattr(pl_module, name, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the wrapper."""
        if self._wrapper is None:
            return self._original(*args, **kwargs)
        return self._wrapper(self._original, *args, **kwargs)

    def release(self) -> None:
        """Call only the method from now on, and restore it once no other substitute replaces it."""
        self._wrapper = None
        while isinstance(outermost := vars(self._pl_module).get(self._name), Substitute) and outermost._wrapper is None:
            delattr(self._pl_module, self._name)
            if outermost._was_on_instance:
                setattr(self._pl_module, self._name, outermost._original)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the running training."""
        return {**vars(self), "_wrapper": None}
