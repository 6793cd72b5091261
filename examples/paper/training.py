"""A short training of which nothing is kept but what a monitor has seen."""

from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from lightning_znorm import GradientMonitor, ZNorm


def fit(
    model: LightningModule,
    data: LightningDataModule,
    steps: int,
    monitor: GradientMonitor,
    znorm: ZNorm,
    **arguments: Any,
) -> Trainer:
    """Train for some steps on one device, silently; ``arguments`` are further ones of the Trainer."""
    trainer = Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="auto",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[znorm, monitor],
        **arguments,
    )
    trainer.fit(model, data)
    return trainer
