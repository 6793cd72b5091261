"""The processes that step an optimizer together."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from lightning_znorm.backends.layouts import explain_failure


@dataclass(frozen=True)
class Ranks:
    """The ranks that decide about each step together.

    Attributes:
        is_distributed: Whether there is more than one rank; then these are all of the default process group.
        device: The device on which they communicate, ``None`` for that of the parameters.
        are_in_step: Whether they are known to make all steps together, as the ranks of a Trainer do.

    """

    is_distributed: bool = False
    device: torch.device | None = None
    are_in_step: bool = False

    def reduce_min(self, value: int, devices: Iterable[torch.device]) -> int:
        """Return the minimum of a value over the ranks, all of which must call this.

        Args:
            value: The value of this rank.
            devices: Devices of the parameters, one of which communicates if :attr:`device` is ``None``.

        """
        if not self.is_distributed:
            return value
        device = self.device or max(devices, key=lambda device: device.type != "cpu", default=torch.device("cpu"))
        minimum = torch.tensor(value, device=device)
        with explain_failure(dist.group.WORLD, device):
            dist.all_reduce(minimum, op=dist.ReduceOp.MIN)
        return int(minimum)


def initialized_ranks() -> Ranks:
    """Return the ranks of ``torch.distributed``; a single one if it is not initialized."""
    return Ranks(dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1)
