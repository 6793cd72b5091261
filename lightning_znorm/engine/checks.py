"""Optimizers and gradients that cannot be transformed: refused by name, before the first step."""

from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from lightning_znorm._lightning import MisconfigurationError
from lightning_znorm.backends.choice import is_capturing
from lightning_znorm.engine.scaling import refuse_unknown_scaling
from lightning_znorm.engine.transform import Transform


def refuse_optimizer(owner: str, optimizer: Optimizer) -> None:
    """Raise for an optimizer that is known to evaluate its closure several times, or whose scaling is unknown."""
    if isinstance(optimizer, LBFGS):
        refuse_closure_reevaluation(owner, optimizer)
    refuse_unknown_scaling(owner, optimizer)


def refuse_parameters(
    owner: str,
    modules: Iterable[nn.Module],
    parameters: Iterable[Tensor],
    name_of: Callable[[Tensor], str],
    under_scaler: bool = False,
) -> None:
    """Raise if a parameter will have a gradient that cannot be transformed.

    Args:
        owner: Name of the transform.
        modules: All modules, if known, to find embeddings with sparse gradients.
        parameters: The selected parameters.
        name_of: Returns the name of a parameter.
        under_scaler: Whether an enabled GradScaler multiplies the loss.

    Raises:
        MisconfigurationError: Naming the parameter and the remedy.

    """
    embeddings = (module for module in modules if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse)
    sparse = {parameter for embedding in embeddings for parameter in embedding.parameters(recurse=False)}
    for parameter in parameters:
        if not parameter.requires_grad:
            continue
        kind = "sparse" if parameter in sparse else "complex" if parameter.dtype.is_complex else None
        if kind is not None:
            name = name_of(parameter)
            remedy = ", or make it dense (`sparse=False`)" if kind == "sparse" else ""
            raise MisconfigurationError(
                f"`{owner}` cannot transform the {kind} gradient of parameter `{name}`. Leave it out with"
                f" `exclude=[{name!r}]`{remedy}."
            )
        if under_scaler and parameter.dtype == torch.float16:
            raise MisconfigurationError(
                f"`{owner}` does not support the float16 parameter `{name_of(parameter)}` under a GradScaler:"
                " transformed and scaled, its gradient would overflow. Keep the parameters in float32"
                " (`precision='16-mixed'` converts the activations), or use `precision='16-true'`."
            )


def refuse_shards(transform: Transform) -> None:
    """Raise if a transform has no arithmetic for gradients of which ranks hold parts."""
    if not transform._handles_shards():
        raise MisconfigurationError(
            f"`{type(transform).__name__}` has no arithmetic for sharded gradients: implement `measure_shards` and"
            " `transform_shards` in the class that implements `transform`, use one device or"
            " DistributedDataParallel, or leave the sharded parameters out with `exclude`."
        )


def refuse_capture(owner: str, **arguments: Any) -> None:
    """Raise if a CUDA graph captures this step and an argument of the transform would wait for the device."""
    if not is_capturing():
        return
    harmless = {"nonfinite": "propagate", "log_stats": False}
    for argument, value in arguments.items():
        if value != harmless[argument]:
            raise MisconfigurationError(
                f"`{owner}({argument}={value!r})` reads values from the device, which a CUDA graph cannot capture. Use"
                f" `{argument}={harmless[argument]!r}`."
            )


def refuse_closure_reevaluation(owner: str, optimizer: Optimizer) -> NoReturn:
    """Raise for an optimizer that evaluates loss and gradients more than once per step."""
    raise MisconfigurationError(
        f"`{owner}` does not support the optimizer `{type(optimizer).__name__}` here: its closure is evaluated several"
        " times per step, by the optimizer itself or by `optimizer_step` of the LightningModule. The losses of these"
        " evaluations are compared, and changing the gradients in between makes that comparison meaningless. Use an"
        " optimizer with one evaluation per step, such as Adam or SGD, or `enabled=False`."
    )
