"""Moments of gradients, and the edit of each gradient that follows from them."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """The results of ``measure``, one entry per gradient; all are 0 for an empty gradient.

    The tensors are float64, of shape ``(n,)`` and on the gradients' device. On a device without float64, those of
    :mod:`.generic` are float32, of shape ``(2, n)``: the value and its rounding error.

    float64 represents the squares of standard deviations from 1e-150 to 1e150: those of every float32 gradient, and of
    all but the most extreme of float64. Pairs of float32 represent those from 1e-18 to 1e15.

    Attributes:
        count: Number of elements.
        mean: Mean of the elements.
        squares: Sum of the squared deviations from the mean; inf or NaN if an element is.

    """

    count: Tensor
    mean: Tensor
    squares: Tensor

    def statistics(self, scale: Tensor | float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean and standard deviation without a scale, and the cosine of a mere multiplication, 1."""
        # without the rounding errors
        count, mean, squares = (part if part.ndim == 1 else part[0] for part in (self.count, self.mean, self.squares))
        scale = scale.to(mean.device) if isinstance(scale, Tensor) else scale
        return mean / scale, (squares / count).sqrt() / scale, torch.ones_like(mean)


def compute_edit(
    moments: Moments, eps: float | Tensor, scale: float | Tensor = 1.0, center: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and factor for ``apply_``, and the statistics of the gradients.

    Args:
        moments: Moments of shape ``(n,)`` each.
        eps: Added to the standard deviation or, without centring, to the root mean square.
        scale: Factor by which gradients and results are multiplied.
        center: Whether the mean is subtracted.

    Returns:
        Two tensors of shape ``(n,)``, the factor being NaN for gradients that stay unchanged (one element, inf or NaN)
        and 0 for those whose divisor is 0; and, of shape ``(3, n)``, mean, standard deviation and
        cosine.

    Example::

        >>> one = torch.ones(1, dtype=torch.float64)
        >>> mean, factor, statistics = compute_edit(Moments(count=4 * one, mean=3 * one, squares=16 * one), eps=0.5)
        >>> mean.item(), factor.item()
        (3.0, 0.4)
        >>> statistics.flatten().tolist()
        [3.0, 2.0, 0.5547001962252291]

    """
    variance = moments.squares / moments.count
    std, rms = variance.sqrt(), torch.addcmul(variance, moments.mean, moments.mean).sqrt()
    statistics = torch.stack([moments.mean, std, rms]).div_(scale)
    is_unchanged = (moments.count < 2) | (std == math.inf)  # or NaN, which makes the factor NaN
    divisor = statistics[1 if center else 2].masked_fill(is_unchanged, math.nan)
    # eps alone, the divisor of a constant gradient, may be too small to divide 0 by
    factor = (divisor + eps).reciprocal().masked_fill_(divisor == 0, 0.0)
    # 1 for a gradient that is unchanged or zero
    torch.div(divisor, statistics[2], out=statistics[2]).nan_to_num_(1.0)
    return moments.mean if center else torch.zeros_like(std), factor, statistics
