"""Statistics of gradients, device by device."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_znorm.backends._memory import to_device


@dataclass(frozen=True)
class DeviceStats:
    """Statistics of the gradients on one device.

    Attributes:
        index: Positions of these gradients among all parameters that have a gradient, of length ``n``.
        mean: Mean of each gradient before the transform, shape ``(n,)``, float64 (float32 if the device has
            no float64), on the device.
        std: Population standard deviation before the transform, shape ``(n,)``.
        cosine: Cosine between the gradient before and after the transform, shape ``(n,)``.

    """

    index: tuple[int, ...]
    mean: Tensor
    std: Tensor
    cosine: Tensor


@dataclass(frozen=True)
class GradientStats:
    r"""Statistics of :func:`znorm_` or :func:`centralize_`: an entry per parameter with a gradient, in the same order.

    The statistics stay on the devices of their gradients, so that computing them waits for no device. A gradient that
    was left unchanged (one element, inf or NaN) has its statistics and a cosine of 1. Where ranks hold parts of a
    gradient, its statistics are those of the whole, on every rank the same.

    ``mean``, ``std`` and ``cosine`` are tensors of shape ``(n,)``: on the device if all gradients share one, otherwise
    on the CPU (which waits for the devices). A positive cosine between the gradient before and after, for ZNorm
    :math:`\sigma / \sqrt{\mu^2 + \sigma^2}`, means that the step still points downhill.

    Attributes:
        by_device: The statistics of each device, in the order of first appearance.

    Example::

        >>> from lightning_znorm import znorm_
        >>> parameter = torch.nn.Parameter(torch.zeros(4))
        >>> parameter.grad = torch.tensor([1.0, 2.0, 3.0, 6.0])
        >>> stats = znorm_(parameter)
        >>> stats.mean
        tensor([3.], dtype=torch.float64)
        >>> len(stats)
        1

    """

    by_device: Mapping[torch.device, DeviceStats]

    def __len__(self) -> int:
        return sum(len(stats.index) for stats in self.by_device.values())

    @property
    def mean(self) -> Tensor:
        """Mean of each gradient before the transform."""
        return self._gather("mean")

    @property
    def std(self) -> Tensor:
        """Population standard deviation of each gradient before the transform."""
        return self._gather("std")

    @property
    def cosine(self) -> Tensor:
        """Cosine between each gradient before and after the transform."""
        return self._gather("cosine")

    def _gather(self, name: str) -> Tensor:
        if not self.by_device:
            return torch.empty(0, dtype=torch.float64, device="cpu")
        groups = list(self.by_device.values())
        if len(groups) == 1:
            values: Tensor = getattr(groups[0], name)
            return values
        gathered = torch.cat([getattr(stats, name).cpu() for stats in groups])
        order = torch.tensor([i for stats in groups for i in stats.index], device="cpu")
        return torch.empty_like(gathered).index_copy_(0, order, gathered)


def join_stats(columns: Iterable[tuple[Sequence[int], Tensor]]) -> GradientStats:
    """Return the statistics of all gradients.

    Args:
        columns: Positions of some gradients, and their mean, standard deviation and cosine, of shape ``(3, n)``.

    Example::

        >>> stats = join_stats([([2], torch.ones(3, 1)), ([0, 1], torch.zeros(3, 2))])
        >>> stats.mean
        tensor([0., 0., 1.])

    """
    by_device: dict[torch.device, list[tuple[Sequence[int], Tensor]]] = {}
    for index, values in columns:
        by_device.setdefault(values.device, []).append((index, values))
    stats = {}
    for device, parts in by_device.items():
        index, values = [i for part, _ in parts for i in part], torch.cat([values for _, values in parts], dim=1)
        if index != sorted(index):
            order = sorted(range(len(index)), key=index.__getitem__)
            index, values = sorted(index), values[:, to_device(order, torch.int64, device)]
        stats[device] = DeviceStats(tuple(index), *values)
    return GradientStats(stats)
