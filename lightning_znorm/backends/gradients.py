"""Requirements of every backend, and the grouping of gradients by device."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_znorm.errors import ArgumentTypeError, ArgumentValueError

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SCALABLE_DTYPES = (torch.bfloat16, torch.float32, torch.float64)  # a GradScaler's scale does not overflow in these


def group_by_device(tensors: Sequence[Tensor]) -> dict[torch.device, tuple[tuple[int, ...], list[Tensor]]]:
    """Return the positions and the tensors of each device, in the order of first appearance."""
    if len({tensor.device for tensor in tensors}) == 1:
        return {tensors[0].device: (tuple(range(len(tensors))), list(tensors))}
    groups: dict[torch.device, dict[int, Tensor]] = {}
    for position, tensor in enumerate(tensors):
        groups.setdefault(tensor.device, {})[position] = tensor
    return {device: (tuple(members), list(members.values())) for device, members in groups.items()}


def are_plain(gradients: Sequence[Tensor], scaled: bool = False) -> bool:
    """Say quickly whether all gradients are certain to be transformable; :func:`require_transformable` is exact."""
    dtypes = _SCALABLE_DTYPES if scaled else _DTYPES
    return (
        {*map(type, gradients)} <= {Tensor}
        and {gradient.layout for gradient in gradients} <= {torch.strided}
        and {gradient.dtype for gradient in gradients} <= {*dtypes}
        and all(map(Tensor.is_contiguous, gradients))
    )


def require_transformable(gradient: Tensor, name: str, scaled: bool = False) -> None:
    """Raise if a gradient cannot be transformed in place.

    Args:
        gradient: The ``.grad`` of a parameter.
        name: Name of the parameter, for the error.
        scaled: Whether the gradient is still multiplied by a GradScaler's scale.

    Raises:
        ArgumentTypeError: If the gradient is sparse, complex, of an unsupported dtype or a tensor subclass, or float16
            and still scaled.
        ArgumentValueError: If elements of the gradient share memory.

    """
    remedy = "Leave it out (`exclude=` of the callback takes patterns of parameter names)"
    if gradient.layout != torch.strided:
        raise ArgumentTypeError(
            f"The gradient of parameter `{name}` is sparse ({gradient.layout}), but mean and standard deviation need"
            f" a dense tensor. {remedy}, or make it dense (`torch.nn.Embedding(sparse=False)`)."
        )
    if gradient.is_complex():
        raise ArgumentTypeError(f"The gradient of parameter `{name}` is complex, expected a real one. {remedy}.")
    if gradient.dtype not in _DTYPES:
        raise ArgumentTypeError(
            f"The gradient of parameter `{name}` has dtype {gradient.dtype}, expected one of {_DTYPES}."
        )
    if scaled and gradient.dtype == torch.float16:
        raise ArgumentTypeError(
            f"The gradient of parameter `{name}` is float16 and still multiplied by a GradScaler's scale: transformed"
            " and scaled, it would overflow. Keep the parameters in float32 (`precision='16-mixed'` of a Trainer,"
            " `torch.autocast` in a plain loop), or train without a GradScaler."
        )
    if type(gradient) not in (Tensor, torch.nn.Parameter):
        raise ArgumentTypeError(
            f"The gradient of parameter `{name}` has the type `{type(gradient).__name__}`, expected a plain tensor, or"
            " a DTensor if the parameter is one."
        )
    if any(stride == 0 and size > 1 for size, stride in zip(gradient.shape, gradient.stride(), strict=True)):
        raise ArgumentValueError(
            f"Elements of the gradient of parameter `{name}` share memory (strides {gradient.stride()}), so it"
            " cannot be edited in place. Copy the gradient first: `p.grad = p.grad.clone()`."
        )
