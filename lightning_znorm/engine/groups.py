"""Which processes step an optimizer together."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Ranks:
    """The ranks that take each decision about a step together.

    Attributes:
        are_several: Whether there is more than one, all of the default process group.
        device: Where a collective communicates, ``None`` for where the parameters are.

    """

    are_several: bool = False
    device: torch.device | None = None

    def smallest(self, value: int, devices: Iterable[torch.device]) -> int:
        """Return the smallest of a value over the ranks; all of them must call this.

        Args:
            value: That of this rank.
            devices: Those of the parameters, one of which takes part if :attr:`device` is ``None``.

        """
        if not self.are_several:
            return value
        device = self.device or max(devices, key=lambda device: device.type != "cpu", default=torch.device("cpu"))
        agreed = torch.tensor(value, device=device)
        dist.all_reduce(agreed, op=dist.ReduceOp.MIN)
        return int(agreed)


def initialized_ranks() -> Ranks:
    """Return the ranks of ``torch.distributed``, where it is initialized."""
    return Ranks(dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1)
