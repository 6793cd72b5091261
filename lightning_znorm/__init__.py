"""ZNorm (z-score gradient normalization, arXiv 2408.01215) for PyTorch Lightning.

Each name is imported on first use, so that ``lightning-znorm --help`` needs neither Lightning nor torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_znorm.callbacks import GradientCentralization, GradientClipping, ZNorm
    from lightning_znorm.errors import ZNormError
    from lightning_znorm.functional import GradientStats, centralize_, znorm_
    from lightning_znorm.hosts.attach import AttachedTransform, attach
    from lightning_znorm.monitor import GradientMonitor
    from lightning_znorm.transform import GradientTransform

__version__ = "0.1.0.dev0"

__all__ = [
    "AttachedTransform",
    "GradientCentralization",
    "GradientClipping",
    "GradientMonitor",
    "GradientStats",
    "GradientTransform",
    "ZNorm",
    "ZNormError",
    "attach",
    "centralize_",
    "znorm_",
]

_HOME = {
    "AttachedTransform": "hosts.attach",
    "GradientCentralization": "callbacks",
    "GradientClipping": "callbacks",
    "GradientMonitor": "monitor",
    "GradientStats": "functional",
    "GradientTransform": "transform",
    "ZNorm": "callbacks",
    "ZNormError": "errors",
    "attach": "hosts.attach",
    "centralize_": "functional",
    "znorm_": "functional",
}


def __getattr__(name: str) -> Any:
    if name in _HOME.values():
        return import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
