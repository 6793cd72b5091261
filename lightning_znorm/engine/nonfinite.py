"""Optimizer steps in which a gradient has an inf or NaN: found on all ranks alike, then skipped or refused."""

from collections.abc import Sequence
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor

from lightning_znorm._torch import norm_all
from lightning_znorm.backends._memory import to_device
from lightning_znorm.backends.gradients import group_by_device
from lightning_znorm.engine.groups import Ranks
from lightning_znorm.errors import NonfiniteGradientError
from lightning_znorm.functional import find_part

Nonfinite = Literal["propagate", "skip", "raise"]


class SkipCounts:
    """Counters of the skipped steps of a training.

    Attributes:
        skipped_steps: Number of all skipped steps.
        consecutive_skips: Number of steps that were skipped since the last one that was made, by the index of the
            optimizer.

    """

    def __init__(self) -> None:
        self.skipped_steps = 0
        self.consecutive_skips: dict[int, int] = {}

    def add(self, optimizer_index: int) -> None:
        """Count a skipped step."""
        self.skipped_steps += 1
        self.consecutive_skips[optimizer_index] = self.consecutive_skips.get(optimizer_index, 0) + 1

    def reset(self, optimizer_index: int) -> None:
        """Note that a step of an optimizer is made."""
        self.consecutive_skips.pop(optimizer_index, None)

    def state_dict(self) -> dict[str, Any]:
        """Return the counters."""
        return {"skipped_steps": self.skipped_steps, "consecutive_skips": dict(self.consecutive_skips)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the counters; missing ones are 0."""
        self.skipped_steps = state.get("skipped_steps", 0)
        self.consecutive_skips = dict(state.get("consecutive_skips", {}))


def find_nonfinite_parameter(parameters: Sequence[Tensor], ranks: Ranks) -> Tensor | None:
    """Return the first parameter whose gradient has an inf or NaN on any of the ranks, all of which must call this."""
    position = ranks.reduce_min(
        find_nonfinite_position([find_part(parameter) for parameter in parameters]),
        (parameter.device for parameter in parameters),
    )
    return None if position == len(parameters) else parameters[position]


def skip_step(
    parameters: Sequence[Tensor], name: str, optimizer_index: int, counts: SkipCounts, max_skips: int, owner: str
) -> None:
    """Clear the gradients, so that the step does nothing, and count it.

    Args:
        parameters: All parameters of the optimizer.
        name: Name of the parameter whose gradient is not finite.
        optimizer_index: Index of the optimizer.
        counts: The counters.
        max_skips: Number of consecutive steps that may be skipped.
        owner: Name of the transform, for the error.

    Raises:
        NonfiniteGradientError: If ``max_skips`` consecutive steps were skipped before.

    """
    if counts.consecutive_skips.get(optimizer_index, 0) >= max_skips:
        raise NonfiniteGradientError(
            f"`{owner}(nonfinite='skip')`: the gradient of parameter `{name}` has an inf or NaN, and the {max_skips}"
            " steps before were skipped for the same reason (`max_skips`). The training has diverged: lower the"
            " learning rate, or find the first inf with `torch.autograd.detect_anomaly()`."
        )
    for parameter in parameters:
        parameter.grad = None
    counts.add(optimizer_index)


def refuse_nonfinite(name: str, owner: str, scaler_skips: bool) -> NoReturn:
    """Raise :class:`NonfiniteGradientError`."""
    note = " A GradScaler provokes such steps to find its scale; `nonfinite='skip'` lets it skip them."
    raise NonfiniteGradientError(
        f"`{owner}(nonfinite='raise')`: the gradient of parameter `{name}` has an inf or NaN."
        f"{note if scaler_skips else ''}"
    )


def find_nonfinite_position(gradients: Sequence[Tensor | None]) -> int:
    """Return the position of the first gradient with an inf or NaN, ``len(gradients)`` if there is none.

    Waits once for the devices, a second time only if there is one.

    Example::

        >>> find_nonfinite_position([torch.ones(2), None, torch.tensor([0.0, torch.nan])])
        2

    """
    values = {i: _view_values(gradient) for i, gradient in enumerate(gradients) if gradient is not None}
    nonempty = [value for value in values.values() if value.numel()]
    # the largest absolute value: it never overflows, and NaN wins
    if not nonempty or torch.nn.utils.get_total_norm(nonempty, norm_type=torch.inf).isfinite():
        return len(gradients)
    return next(i for i, value in values.items() if not value.isfinite().all())


def flag_nonfinite(gradients: Sequence[Tensor | None]) -> Tensor:
    """Return 1 for each gradient with an inf or NaN and 0 for the others, float64, without waiting for the device.

    Example::

        >>> flag_nonfinite([torch.ones(2), None, torch.tensor([0.0, torch.nan])])
        tensor([0., 0., 1.], dtype=torch.float64)

    """
    values = [None if gradient is None else _view_values(gradient) for gradient in gradients]
    places = [i for i, value in enumerate(values) if value is not None and value.numel()]
    present = [value for value in values if value is not None and value.numel()]
    flags = torch.zeros(len(gradients), dtype=torch.float64, device=present[0].device if present else "cpu")
    for index, members in group_by_device(present).values():
        # the largest absolute value: it never overflows, and NaN wins
        norms = torch.stack([*norm_all(members, torch.inf, torch.float64)])
        positions = to_device([places[i] for i in index], torch.int64, flags.device)
        flags.index_copy_(0, positions, norms.isfinite().logical_not().to(flags))
    return flags


def _view_values(gradient: Tensor) -> Tensor:
    gradient = gradient.detach()
    if gradient.layout == torch.sparse_coo:
        gradient = gradient.coalesce().values()
    elif gradient.layout != torch.strided:
        gradient = gradient.values()
    return torch.view_as_real(gradient) if gradient.is_complex() else gradient
