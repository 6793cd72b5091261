"""One application of a gradient transform to one optimizer: what a Trainer's callback and `attach` share."""

from typing import TYPE_CHECKING

from torch import Tensor
from torch.optim import Optimizer

from lightning_znorm.engine.checks import refuse_flattened
from lightning_znorm.engine.selection import ParameterNames
from lightning_znorm.functional import GradientStats, are_plain, require_transformable

if TYPE_CHECKING:
    from lightning_znorm.transform import GradientTransform


def apply_transform(
    transform: "GradientTransform", optimizer: Optimizer, names: ParameterNames, grad_scale: Tensor | None
) -> tuple[list[Tensor], GradientStats] | None:
    """Transform the gradients of the optimizer's selected parameters, each once.

    Args:
        transform: The transform, which also selects the parameters.
        optimizer: The optimizer that is about to step.
        names: Names of the parameters, and which are excluded.
        grad_scale: The GradScaler's scale by which the gradients are still multiplied, ``None`` for none.

    Returns:
        The parameters and the statistics of their gradients, ``None`` if there was none to transform.

    """
    pairs = [(p, g) for p in names.included(optimizer) if (g := p.grad) is not None and g.numel()]
    if transform.min_ndim:
        pairs = [(parameter, gradient) for parameter, gradient in pairs if parameter.ndim >= transform.min_ndim]
    if not pairs:
        return None
    if not are_plain([gradient for _, gradient in pairs], scaled=grad_scale is not None):
        for parameter, gradient in pairs:
            require_transformable(gradient, names[parameter], scaled=grad_scale is not None)
    parameters = [parameter for parameter, _ in pairs]
    refuse_flattened(transform, parameters)
    return parameters, transform.transform(parameters, grad_scale)


def is_selected(transform: "GradientTransform", names: ParameterNames, parameter: Tensor) -> bool:
    """Say whether ``min_ndim`` and ``exclude`` leave the parameter in."""
    return parameter.ndim >= transform.min_ndim and not names.is_excluded(parameter)
