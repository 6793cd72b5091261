"""Indices of the optimizers of a training, including those that replace others."""

from collections.abc import Iterator
from typing import Any
from weakref import ref


class OptimizerIndices:
    """Indexes optimizers in the order in which they are added, and keeps none of them alive."""

    def __init__(self) -> None:
        self._references: list[ref[Any]] = []

    def __contains__(self, optimizer: object) -> bool:
        return any(member is optimizer for member in self)

    def __getitem__(self, optimizer: Any) -> int:
        return next(index for index, reference in enumerate(self._references) if reference() is optimizer)

    def __iter__(self) -> Iterator[Any]:
        return (optimizer for reference in self._references if (optimizer := reference()) is not None)

    def add(self, optimizer: Any) -> None:
        """Give the next index to an optimizer."""
        self._references.append(ref(optimizer))
