"""Reports of a host about its steps: metrics for the Trainer's loggers, and warnings."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_znorm._lightning import batches_that_stepped, rank_zero_warn
from lightning_znorm.engine.transform import LogStats
from lightning_znorm.functional import GradientStats

if TYPE_CHECKING:
    import lightning.pytorch as pl


def log_metrics(trainer: "pl.Trainer", metrics: Mapping[str, float]) -> None:
    """Log metrics on rank 0, at the step that the module's ``self.log`` would use."""
    if trainer.is_global_zero:
        for logger in trainer.loggers:
            logger.log_metrics(dict(metrics), step=batches_that_stepped(trainer))


def prefix_of(name: str, optimizer_index: int, optimizers: int) -> str:
    """Return the first part of the names of metrics, with the optimizer's index if there are several."""
    return f"{name}/optimizer_{optimizer_index}" if optimizers > 1 else name


def summarize(
    prefix: str, mean: Tensor, std: Tensor, numel: Sequence[int], cosine: Tensor | None = None
) -> dict[str, float]:
    """Reduce statistics of gradients to a few metrics over all tensors.

    Args:
        prefix: First part of their names.
        mean: Mean of each gradient, of shape ``(n,)`` on the CPU.
        std: Standard deviation of each gradient, of shape ``(n,)``.
        numel: Number of elements of each gradient. Gradients of one element do not count for ``std`` unless there are
            no others.
        cosine: Cosine between each gradient and its transform, of shape ``(n,)``.

    Returns:
        ``mean_abs`` (mean of the absolute means), ``std_min``, ``std_median``, ``std_max``, ``cosine_mean``,
        ``cosine_min`` under the prefix. NaN means that a gradient was not finite.

    """
    is_large = torch.tensor(numel, device="cpu") > 1
    if is_large.any():
        std = std[is_large]
    metrics = {
        "mean_abs": mean.abs().mean(),
        "std_min": std.min(),
        "std_median": std.median(),
        "std_max": std.max(),
    }
    if cosine is not None:
        metrics |= {"cosine_mean": cosine.mean(), "cosine_min": cosine.min()}
    return {f"{prefix}/{name}": value.item() for name, value in metrics.items()}


def itemize(prefix: str, names: Sequence[str], **statistics: Sequence[float]) -> dict[str, float]:
    """Return each statistic of each gradient under the name ``<prefix>/<statistic>/<parameter>``."""
    return {
        f"{prefix}/{statistic}/{name}": value
        for statistic, values in statistics.items()
        for name, value in zip(names, values, strict=True)
    }


def compute_metrics(
    prefix: str, detail: LogStats, stats: GradientStats, names: Sequence[str], numel: Sequence[int]
) -> dict[str, float]:
    """Return the metrics of ``log_stats``, with one transfer to the host per device."""
    mean, std, cosine = torch.empty(3, len(stats), dtype=torch.float64, device="cpu")
    for group in stats.by_device.values():
        index = list(group.index)
        mean[index], std[index], cosine[index] = torch.stack([group.mean, group.std, group.cosine]).cpu().double()
    if detail == "layers":
        return itemize(prefix, names, mean=mean.tolist(), std=std.tolist())
    return summarize(prefix, mean, std, numel, cosine)


def warn_about_bypass(owner: str, optimizer: Optimizer) -> None:
    """Warn that a step bypassed the Trainer."""
    rank_zero_warn(
        f"`{owner}` was bypassed: the optimizer `{type(optimizer).__name__}` made a step without the Trainer, with"
        " gradients that were not transformed. With manual optimization, step the optimizer that `self.optimizers()`"
        " returns (not with `use_pl_optimizer=False`); in `optimizer_step` of the LightningModule, step its argument"
        " `optimizer` (not `optimizer.optimizer`)."
    )


def warn_about_idleness(owner: str, was_called: bool) -> None:
    """Warn that a whole training transformed no gradient."""
    if not was_called:
        rank_zero_warn(f"`{owner}` never ran: no optimizer step of this training went through the Trainer.")
    else:
        rank_zero_warn(
            f"`{owner}` ran, but transformed no gradient in this training. Either no step was inside `start_step` and"
            " `stop_step`, or `exclude` and `min_ndim` left out every parameter, or the optimizer's parameters have no"
            " `.grad`, as with strategies that store gradients elsewhere."
        )


def warn_about_skip(owner: str, parameter: str, step: int) -> None:
    """Warn about the first skipped step."""
    rank_zero_warn(
        f"`{owner}(nonfinite='skip')` skipped the optimizer step {step}: the gradient of parameter `{parameter}` has an"
        " inf or NaN. Further skipped steps are counted without a warning."
    )
