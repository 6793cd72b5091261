"""From the moments of gradients to what is applied to them."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """What ``measure`` finds, one entry per gradient, an empty gradient being all 0.

    The tensors are float64, of shape ``(n,)`` and on the gradients' device. Those of :mod:`.generic` on a device
    without float64 are float32, of shape ``(2, n)``: the value, and what float32 lacks of it.

    float64 holds the squares of standard deviations from 1e-150 to 1e150: those of every float32 gradient, and of all
    but the most extreme of float64. Pairs hold those from 1e-18 to 1e15.

    Attributes:
        count: Number of elements.
        mean: Their mean.
        squares: Sum of the squared deviations from it; inf or NaN if an element is.

    """

    count: Tensor
    mean: Tensor
    squares: Tensor

    def statistics(self, scale: Tensor | float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean and standard deviation, without a scale, and 1, the cosine of what is only multiplied."""
        # without what float32 lacks of them
        count, mean, squares = (part if part.ndim == 1 else part[0] for part in (self.count, self.mean, self.squares))
        scale = scale.to(mean.device) if isinstance(scale, Tensor) else scale
        return mean / scale, (squares / count).sqrt() / scale, torch.ones_like(mean)


def conclude(
    moments: Moments, eps: float | Tensor, scale: float | Tensor = 1.0, center: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and factor for ``apply_``, and the statistics.

    Args:
        moments: Of whole gradients, of shape ``(n,)`` each.
        eps: Added to the standard deviation or, without centring, to the root mean square.
        scale: By which gradients and results are multiplied.
        center: Whether the mean is subtracted.

    Returns:
        Two tensors of shape ``(n,)``, the factor being NaN for gradients that are to be left alone (one element, inf
        or NaN) and 0 for those without anything to divide by; and, of shape ``(3, n)``, mean, standard deviation and
        cosine.

    Example::

        >>> one = torch.ones(1, dtype=torch.float64)
        >>> mean, factor, statistics = conclude(Moments(count=4 * one, mean=3 * one, squares=16 * one), eps=0.5)
        >>> mean.item(), factor.item()
        (3.0, 0.4)
        >>> statistics.flatten().tolist()
        [3.0, 2.0, 0.5547001962252291]

    """
    std = (moments.squares / moments.count).sqrt()
    rms = (moments.mean.square() + std.square()).sqrt()
    divisor = std if center else rms
    is_left = (moments.count < 2) | ~std.isfinite()
    # of a constant gradient eps alone would be left, which may be too small to divide 0 by
    factor = torch.where(divisor == 0, 0.0, 1 / (divisor / scale + eps))
    cosine = torch.where(is_left | (rms == 0), 1.0, std / rms) if center else torch.ones_like(std)
    mean = moments.mean if center else torch.zeros_like(std)
    statistics = torch.stack([moments.mean / scale, std / scale, cosine])
    return mean, torch.where(is_left, torch.nan, factor), statistics
