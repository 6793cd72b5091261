"""Optimizer steps whose gradients have an inf or a NaN: found on all ranks alike, skipped and counted, or refused."""

from collections.abc import Sequence
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor

from lightning_znorm.engine.groups import Ranks
from lightning_znorm.errors import NonfiniteGradientError

Nonfinite = Literal["propagate", "skip", "raise"]


class SkipCounts:
    """How many steps of a training were skipped.

    Attributes:
        skipped_steps: In all.
        in_a_row: How many of the latest steps were skipped without one in between that was made, by the number of the
            optimizer.

    """

    def __init__(self) -> None:
        self.skipped_steps = 0
        self.in_a_row: dict[int, int] = {}

    def add(self, row: int) -> None:
        """Count a skipped step."""
        self.skipped_steps += 1
        self.in_a_row[row] = self.in_a_row.get(row, 0) + 1

    def state_dict(self) -> dict[str, Any]:
        """Return the counters."""
        return {"skipped_steps": self.skipped_steps, "consecutive_skips": dict(self.in_a_row)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the counters; those that are missing are 0."""
        self.skipped_steps = state.get("skipped_steps", 0)
        self.in_a_row = dict(state.get("consecutive_skips", {}))


def find_nonfinite(parameters: Sequence[Tensor], ranks: Ranks) -> Tensor | None:
    """Return the first parameter whose gradient has an inf or NaN on any of the ranks, which all must call this."""
    position = ranks.smallest(
        first_nonfinite([parameter.grad for parameter in parameters]), (parameter.device for parameter in parameters)
    )
    return None if position == len(parameters) else parameters[position]


def skip(parameters: Sequence[Tensor], name: str, row: int, counts: SkipCounts, max_skips: int, owner: str) -> None:
    """Clear the gradients, so that the step does nothing, and count it.

    Args:
        parameters: All parameters of the optimizer.
        name: Of the parameter whose gradient is not finite.
        row: Number of the optimizer.
        counts: Where to count.
        max_skips: How many steps in a row may be skipped.
        owner: Who skips, for the error.

    Raises:
        NonfiniteGradientError: If so many steps in a row were skipped before.

    """
    if counts.in_a_row.get(row, 0) >= max_skips:
        raise NonfiniteGradientError(
            f"`{owner}(nonfinite='skip')`: the gradient of parameter `{name}` has an inf or NaN, and the {max_skips}"
            " steps before were skipped for the same reason (`max_skips`). The training has diverged: lower the"
            " learning rate, or look for the first inf with `torch.autograd.detect_anomaly()`."
        )
    for parameter in parameters:
        parameter.grad = None
    counts.add(row)


def refuse_nonfinite(name: str, owner: str, scaler_skips: bool) -> NoReturn:
    """Raise :class:`NonfiniteGradientError`."""
    note = " A GradScaler provokes such steps to find its scale; `nonfinite='skip'` leaves them to it."
    raise NonfiniteGradientError(
        f"`{owner}(nonfinite='raise')`: the gradient of parameter `{name}` has an inf or NaN."
        f"{note if scaler_skips else ''}"
    )


def first_nonfinite(gradients: Sequence[Tensor | None]) -> int:
    """Return the position of the first gradient with an inf or NaN, ``len(gradients)`` if there is none.

    Waits once for the devices, a second time only if there is one.

    Example::

        >>> first_nonfinite([torch.ones(2), None, torch.tensor([0.0, torch.nan])])
        2

    """
    values = {i: _values(gradient) for i, gradient in enumerate(gradients) if gradient is not None}
    present = [value for value in values.values() if value.numel()]
    # the largest absolute value: no overflow on the way, and NaN wins
    if not present or torch.nn.utils.get_total_norm(present, norm_type=torch.inf).isfinite():
        return len(gradients)
    return next(i for i, value in values.items() if not value.isfinite().all())


def _values(gradient: Tensor) -> Tensor:
    gradient = gradient.detach()
    if gradient.layout == torch.sparse_coo:
        gradient = gradient.coalesce().values()
    elif gradient.layout != torch.strided:
        gradient = gradient.values()
    return torch.view_as_real(gradient) if gradient.is_complex() else gradient
