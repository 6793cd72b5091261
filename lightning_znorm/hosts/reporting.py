"""Gradient statistics on their way to the Trainer's loggers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch

from lightning_znorm.functional import GradientStats

if TYPE_CHECKING:
    import lightning.pytorch as pl


def log_gradient_stats(
    trainer: "pl.Trainer",
    prefix: str,
    detail: Literal["summary", "layers"],
    stats: GradientStats,
    names: Sequence[str],
) -> None:
    """Hand the statistics to the loggers if they are due in this step, with one transfer to the host per device."""
    # The logger connector's own test, so that these figures share the steps of the module's `self.log`.
    if not trainer.loggers or not trainer.is_global_zero or not len(stats):
        return
    if not trainer._logger_connector.should_update_logs:
        return
    metrics = summarize(stats) if detail == "summary" else per_layer(stats, names)
    metrics = {f"{prefix}/{key}": value for key, value in metrics.items()}
    hand_over(trainer, metrics)


def log_skipped_steps(trainer: "pl.Trainer", prefix: str, skipped_steps: int) -> None:
    """Hand the number of skipped steps to the loggers, in each skipped step."""
    if trainer.is_global_zero:
        hand_over(trainer, {f"{prefix}/skipped_steps": float(skipped_steps)})


def hand_over(trainer: "pl.Trainer", metrics: dict[str, float]) -> None:
    """Give metrics to all loggers, under the step that the module's ``self.log`` would use."""
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=logged_step(trainer))


def logged_step(trainer: "pl.Trainer") -> int:
    """Return the number of the current step as loggers count them."""
    step: int = trainer.fit_loop.epoch_loop._batches_that_stepped
    return step


def summarize(stats: GradientStats) -> dict[str, float]:
    """Reduce the statistics to a handful of figures over all tensors.

    Returns:
        ``mean_abs`` (mean of the absolute means), ``std_min``, ``std_median``, ``std_max``, ``cosine_mean``,
        ``cosine_min``. NaN in one of them tells that a gradient was not finite.

    """
    mean, std, cosine = _on_host(stats)
    return {
        "mean_abs": mean.abs().mean().item(),
        "std_min": std.min().item(),
        "std_median": std.median().item(),
        "std_max": std.max().item(),
        "cosine_mean": cosine.mean().item(),
        "cosine_min": cosine.min().item(),
    }


def per_layer(stats: GradientStats, names: Sequence[str]) -> dict[str, float]:
    """Return ``mean/<name>`` and ``std/<name>`` of each parameter."""
    mean, std, _ = _on_host(stats)
    metrics = {f"mean/{name}": value for name, value in zip(names, mean.tolist(), strict=True)}
    metrics.update({f"std/{name}": value for name, value in zip(names, std.tolist(), strict=True)})
    return metrics


def _on_host(stats: GradientStats) -> torch.Tensor:
    """Return mean, std and cosine as the rows of one CPU tensor."""
    joined = torch.empty(3, len(stats), dtype=torch.float64, device="cpu")
    for group in stats.by_device.values():
        joined[:, list(group.index)] = torch.stack([group.mean, group.std, group.cosine]).cpu().double()
    return joined
