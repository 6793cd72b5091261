"""LightningCLI with ZNorm as a flag: :class:`ZNormCLI` for your own command line, and ``lightning-znorm fit``."""

from lightning_znorm.cli.parser import ZNormArguments, ZNormCLI

__all__ = ["ZNormArguments", "ZNormCLI"]
