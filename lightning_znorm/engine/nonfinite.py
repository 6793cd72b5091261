"""Optimizer steps whose gradients have an inf or a NaN: found on all ranks alike, skipped and counted, or refused."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from lightning_znorm.engine.selection import ParameterNames, parameters_of

if TYPE_CHECKING:
    from lightning_znorm.transform import GradientTransform

Nonfinite = Literal["propagate", "skip", "raise"]


class NonfinitePolicy:
    """What becomes of a step with a non-finite gradient, and how often it came.

    Args:
        owner: The transform whose arguments ``nonfinite`` and ``max_skips`` apply.

    Attributes:
        skipped_steps: Number of steps skipped so far.
        consecutive_skips: For each optimizer by its number, how many of its latest steps in a row were skipped.

    """

    def __init__(self, owner: "GradientTransform") -> None:
        self._owner = owner
        self.skipped_steps = 0
        self.consecutive_skips: dict[int, int] = {}

    def skips(
        self,
        optimizer: Optimizer,
        number: int,
        names: ParameterNames,
        scaler_skips: bool = False,
        distributed: bool = False,
        device: torch.device | None = None,
    ) -> str | None:
        """Look for a non-finite gradient of the optimizer and act on it.

        All ranks must call this in the same step, and come to the same result.

        Args:
            optimizer: The optimizer that is about to step.
            number: Its number among those of the training.
            names: Names of the parameters, for errors.
            scaler_skips: Whether a GradScaler will skip the step by itself.
            distributed: Whether to ask the other ranks of the default process group.
            device: Where the collective communicates, by default where the parameters are.

        Returns:
            The parameter's name if the gradients were cleared, so that the step does nothing; ``None`` otherwise.

        Raises:
            RuntimeError: Naming the parameter, with ``nonfinite="raise"`` or after ``max_skips`` skips in a row.

        """
        mode, owner = self._owner.nonfinite, type(self._owner).__name__
        if mode == "propagate" or (mode == "skip" and scaler_skips):
            return None
        parameters = parameters_of(optimizer)
        if not parameters:
            return None
        first = first_nonfinite([p.grad for p in parameters])
        if distributed:
            devices = [parameter.device for parameter in parameters]
            agreed = torch.tensor(first, device=device or max(devices, key=lambda device: device.type != "cpu"))
            dist.all_reduce(agreed, op=dist.ReduceOp.MIN)
            first = int(agreed)
        if first == len(parameters):
            self.consecutive_skips.pop(number, None)
            return None

        name = names[parameters[first]]
        if mode == "raise":
            note = " A GradScaler provokes such steps to find its scale; `nonfinite='skip'` leaves them to it."
            raise RuntimeError(
                f"`{owner}(nonfinite='raise')`: the gradient of parameter `{name}` has an inf or NaN."
                f"{note if scaler_skips else ''}"
            )
        if self.consecutive_skips.get(number, 0) >= self._owner.max_skips:
            raise RuntimeError(
                f"`{owner}(nonfinite='skip')`: the gradient of parameter `{name}` has an inf or NaN, and the"
                f" {self._owner.max_skips} steps before were skipped for the same reason (`max_skips`). The training"
                " has diverged: lower the learning rate, or look for the first inf with"
                " `torch.autograd.detect_anomaly()`."
            )
        for parameter in parameters:
            parameter.grad = None
        self.skipped_steps += 1
        self.consecutive_skips[number] = self.consecutive_skips.get(number, 0) + 1
        return name

    def state_dict(self) -> dict[str, Any]:
        """Return the counters."""
        return {"skipped_steps": self.skipped_steps, "consecutive_skips": dict(self.consecutive_skips)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the counters; those that are missing are 0."""
        self.skipped_steps = state.get("skipped_steps", 0)
        self.consecutive_skips = dict(state.get("consecutive_skips", {}))


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
