"""What several test modules share: an independent ZNorm, tiny modules, a quiet Trainer."""

from importlib import import_module

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

PACKAGES = ("lightning.pytorch", "pytorch_lightning")
# for the tests of a file that has one with PACKAGES
FIRST_PACKAGE = ("lightning.pytorch", pytest.param("pytorch_lightning", marks=pytest.mark.long))
QUIET = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def znorm_by_numpy(gradient: Tensor, eps: float = 1e-10) -> np.ndarray:
    """The z-score in 80-bit floating point, by NumPy alone."""
    exact = gradient.detach().double().numpy().astype(np.longdouble)
    return (exact - exact.mean()) / (exact.std() + np.longdouble(eps))


def centralize_by_numpy(gradient: Tensor) -> np.ndarray:
    """Gradient centralization in 80-bit floating point, by NumPy alone; rows of one element stay."""
    exact = gradient.detach().double().numpy().astype(np.longdouble)
    if exact.ndim < 2 or exact[0].size < 2:
        return exact
    return exact - exact.mean(axis=tuple(range(1, exact.ndim)), keepdims=True)


def relative_error(result: Tensor, expected: np.ndarray) -> float:
    """Norm of the difference over norm of the expected result."""
    difference = result.detach().double().numpy().astype(np.longdouble) - expected
    return float(np.sqrt(np.square(difference).sum() / np.square(expected).sum()))


def parameter(gradient: Tensor | None, shape: tuple[int, ...] | None = None) -> nn.Parameter:
    """A parameter of zeros with a given gradient."""
    like = {} if gradient is None else {"dtype": gradient.dtype, "device": gradient.device}
    result = nn.Parameter(torch.zeros(shape or gradient.shape, **like))
    result.grad = gradient
    return result


def skip_if_pytorch_is_wrong(dtype: torch.dtype) -> None:
    """PyTorch 2.11's fused SGD goes astray on a CPU from 16 elements of half precision on, without ZNorm too."""
    weights = []
    for fused in (False, True):
        weight = parameter(torch.linspace(-1, 2, 64).to(dtype))
        torch.optim.SGD([weight], lr=0.125, fused=fused, foreach=False).step()
        weights.append(weight.detach())
    if not torch.allclose(*weights, atol=0.01):
        pytest.skip(f"the fused SGD of torch {torch.__version__} is wrong for {dtype} on a CPU")


def small_network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def small_data(samples: int = 40) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(torch.randn(samples, 6, generator=generator), torch.randn(samples, 3, generator=generator))


def make_module(package: str = "lightning.pytorch", network: nn.Module | None = None, optimizer=None, batch_size=4):
    """A LightningModule of either package: regression of random targets, batches in a fixed order."""
    pl = import_module(package)

    class Regression(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = small_network() if network is None else network

        def training_step(self, batch, batch_idx):
            inputs, targets = batch
            loss = nn.functional.mse_loss(self.network(inputs), targets)
            self.log("train_loss", loss)
            return loss

        def configure_optimizers(self):
            make = optimizer or (lambda parameters: torch.optim.SGD(parameters, lr=0.05))
            return make(self.parameters())

        def train_dataloader(self):
            sampler = None
            if self.trainer.world_size > 1:  # Lightning's own sampler would shuffle
                sampler = DistributedSampler(
                    small_data(), self.trainer.world_size, self.trainer.global_rank, shuffle=False
                )
            return DataLoader(small_data(), batch_size=batch_size, sampler=sampler)

    return Regression()


def make_trainer(package: str = "lightning.pytorch", **kwargs):
    return import_module(package).Trainer(**{**QUIET, **kwargs})


def precision_arguments(package, precision, **scaler):
    """What a Trainer on a CPU is given for a precision; the plain flag turns 16-mixed into bf16-mixed there."""
    if precision != "16-mixed":
        return {"precision": precision}
    grad_scaler = torch.amp.GradScaler("cpu", **scaler)
    return {"plugins": [import_module(f"{package}.plugins").MixedPrecision("16-mixed", "cpu", grad_scaler)]}


def recording_logger(package, prefix="znorm/"):
    """A logger that keeps the metrics whose names begin with a prefix, each with its step."""
    base = import_module(f"{package}.loggers.logger").DummyLogger

    class Recording(base):
        def __init__(self):
            super().__init__()
            self.rows = []

        def log_metrics(self, metrics, step):
            chosen = {name: value for name, value in metrics.items() if name.startswith(prefix)}
            if chosen:
                self.rows.append((step, chosen))

    return Recording()


def normalize_by_numpy(optimizer):
    """ZNorm of the test's own, as a module's `on_before_optimizer_step`."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None and parameter.numel() > 1:
                parameter.grad.copy_(torch.from_numpy(znorm_by_numpy(parameter.grad).astype("float32")))
