"""Statistics of the gradients before and after everything that edits them, and a picture of them."""

from lightning_znorm.monitor.callback import GradientMonitor

__all__ = ["GradientMonitor"]
