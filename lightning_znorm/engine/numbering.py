"""Numbers of the optimizers of a training, also where one takes the place of another."""

from collections.abc import Iterator
from typing import Any
from weakref import ref


class OptimizerNumbers:
    """Numbers optimizers in the order in which they come; keeps none of them alive."""

    def __init__(self) -> None:
        self._references: list[ref[Any]] = []

    def __contains__(self, optimizer: object) -> bool:
        return any(known is optimizer for known in self)

    def __getitem__(self, optimizer: Any) -> int:
        return next(number for number, reference in enumerate(self._references) if reference() is optimizer)

    def __iter__(self) -> Iterator[Any]:
        return (optimizer for reference in self._references if (optimizer := reference()) is not None)

    def add(self, optimizer: Any) -> None:
        """Give the next number to an optimizer."""
        self._references.append(ref(optimizer))
