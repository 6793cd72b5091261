"""A split of a data set, and its batches: augmented, standardized."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lightning_znorm.vision.data._augmentation import Augmentation

__all__ = ["Samples", "Split", "Tensors", "choose", "standardization"]


class Samples(Protocol):
    """Images ``(C, H, W)`` uint8 with their targets: an int64 label, or a mask ``(1, H, W)`` uint8 of 0 and 1."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Tensors:
    """Samples that are in memory.

    Attributes:
        images: ``(N, C, H, W)`` uint8, or of any type where they are not augmented.
        targets: ``(N,)`` int64, or ``(N, masks, H, W)`` uint8.

    """

    images: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int | Tensor) -> tuple[Tensor, Tensor]:
        return self.images[index], self.targets[index]


@dataclass(frozen=True)
class Split:
    """Samples, and with what they are standardized.

    Attributes:
        samples: All of one split.
        mean: ``(1, C)``, or ``(len(samples), C)``: that of each image, in the units of its pixels.
        std: Of the same shape.
        cases: ``(len(samples),)`` int64, the number of each sample's case, such as a patient; ``None`` for none.

    """

    samples: Samples
    mean: Tensor
    std: Tensor
    cases: Tensor | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def to(self, device: torch.device) -> "Split":
        """Return the split on a device; its samples are :class:`Tensors`."""
        if not isinstance(self.samples, Tensors):
            raise RuntimeError(f"Only samples that are in memory can be moved to {device}.")
        samples = Tensors(self.samples.images.to(device), self.samples.targets.to(device))
        cases = None if self.cases is None else self.cases.to(device)
        return Split(samples, self.mean.to(device), self.std.to(device), cases)

    def prepare(
        self, indices: Tensor, augmentation: Augmentation | None = None, draws: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Return images, standardized, targets and, where there are any, cases of some samples; masks are float32."""
        images, targets = self._gather(indices)
        masks = targets if targets.ndim > 1 else None
        if augmentation is not None and draws is not None:
            images, masks = augmentation(images, masks, draws)
        mean, std = (
            (figure[indices] if len(figure) > 1 else figure)[:, :, None, None] for figure in (self.mean, self.std)
        )
        batch = ((images.float() - mean) / std, targets if masks is None else masks.float())
        return batch if self.cases is None else (*batch, self.cases[indices])

    def _gather(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(self.samples, Tensors):
            return self.samples[indices]
        images, targets = zip(*(self.samples[index] for index in indices.tolist()), strict=True)
        return torch.stack(images), torch.stack(targets)


def choose(whole: Tensors, indices: dict[str, list[int]], name: str) -> Split:
    """Return one split of samples in memory, standardized by the figures of the training split."""
    reference = whole.images[indices["train"]]
    samples = Tensors(*whole[torch.tensor(indices[name])])
    return Split(samples, reference.mean().view(1, 1), reference.std().view(1, 1))


def standardization(mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of channels in [0, 1] as a :class:`Split` has them.

    Example::

        >>> standardization((0.5,), (0.2,))
        (tensor([[127.5000]]), tensor([[51.]]))

    """
    mean_and_std = torch.tensor([[mean], [std]], dtype=torch.float32)
    return tuple(255 * mean_and_std)
