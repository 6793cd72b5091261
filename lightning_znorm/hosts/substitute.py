"""A function that stands in for a method of a LightningModule for a while."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import lightning.pytorch as pl


class Substitute:
    """Stands in for a method of one module until :meth:`release`; in copies of the module it calls the method alone.

    Args:
        pl_module: The module.
        name: Name of the method.
        around: Called with the method and the arguments.

    """

    def __init__(self, pl_module: "pl.LightningModule", name: str, around: Callable[..., Any]) -> None:
        self._pl_module, self._name = pl_module, name
        self._around: Callable[..., Any] | None = around
        self._original = getattr(pl_module, name)
        self._was_on_instance = name in vars(pl_module)
        setattr(pl_module, name, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method by way of the function."""
        if self._around is None:
            return self._original(*args, **kwargs)
        return self._around(self._original, *args, **kwargs)

    def release(self) -> None:
        """Only call the method from now on; when nothing else stands in for it, give it back to the module."""
        self._around = None
        while isinstance(top := vars(self._pl_module).get(self._name), Substitute) and top._around is None:
            delattr(self._pl_module, self._name)
            if top._was_on_instance:
                setattr(self._pl_module, self._name, top._original)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the training behind."""
        return {**vars(self), "_around": None}
