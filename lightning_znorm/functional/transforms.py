"""Gradient transforms as functions on parameters, in the manner of :func:`torch.nn.utils.clip_grad_norm_`."""

import warnings
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lightning_znorm._torch import is_flattened
from lightning_znorm.backends.gradients import are_plain, require_transformable
from lightning_znorm.backends.layouts import find_dtensor_layout, is_dtensor
from lightning_znorm.errors import ArgumentTypeError, ArgumentValueError, describe, require_positive
from lightning_znorm.functional.plain import centralize_gradients_, list_gradients, list_unique, znorm_gradients_
from lightning_znorm.functional.sharded import (
    ShardedGradients,
    add_up,
    centralize_sharded_,
    collect_gradients,
    measure_moments,
    measure_rows,
    require_transformable_parts,
    znorm_sharded_,
)
from lightning_znorm.functional.stats import GradientStats


@torch.no_grad()
def znorm_(
    parameters: Tensor | Iterable[Tensor], eps: float = 1e-10, grad_scale: Tensor | None = None, center: bool = True
) -> GradientStats:
    r"""Normalize the gradient of each parameter to zero mean and unit standard deviation, in place.

    .. math::
        g \leftarrow \frac{g - \mu(g)}{\sigma(g) + \epsilon}

    with the population mean and standard deviation (:math:`1/d`) of all :math:`d` elements of one parameter's gradient,
    or, with ``center=False``, only its scale:

    .. math::
        g \leftarrow \frac{g}{\sqrt{\frac{1}{d} \sum_{i} g_i^2} + \epsilon}

    Afterwards every normalized gradient has L2 norm :math:`\sqrt{d}`. Compared with float64 arithmetic, the error is at
    most 1e-6 of the norm for float32 gradients with a mean of up to ten standard deviations (the worst measured on a
    CPU is 5.4e-7, over normal noise, signs, few or rounded values, zeros, outliers, denormals and values near the
    largest of float32), 1e-12 for float64, and one rounding for float16 and bfloat16. No finite gradient becomes inf or
    NaN.

    Parameters without a gradient and empty ones are skipped, a parameter that is listed twice and a gradient that two
    parameters share are normalized once, a gradient of one element or with an inf or NaN stays unchanged, and a
    constant gradient becomes exactly zero (with ``center=False``, each of its elements becomes 1 or -1 but for ``eps``,
    and zeros stay).

    Of a DTensor, :math:`d` counts the elements of the whole tensor, whatever its placements: all ranks must call this
    with the same parameters. All parameters whose mesh spans all ranks share one all-reduce of 16 bytes per parameter.

    Args:
        parameters: A tensor, or an iterable of tensors, of any shape, device and dtype float16, bfloat16, float32 or
            float64, whose ``.grad`` is normalized.
        eps: Added to each standard deviation or root mean square, in the units of the gradient.
        grad_scale: For gradients that a :class:`torch.amp.GradScaler` has not unscaled yet: its scale, a tensor of one
            element. The result is multiplied by it, ``eps`` and the statistics refer to the gradients without it, so
            that a fused optimizer, which divides by it, makes the right step.
        center: Whether the mean is subtracted.

    Returns:
        Mean, standard deviation and cosine of each gradient, see :class:`GradientStats`. Without centring the cosine
        is 1.

    Raises:
        ValueError: If ``eps`` is not a positive finite number, ``center`` is neither true nor false, or the elements of
            a gradient share memory.
        TypeError: If a gradient is sparse, complex, of an unsupported dtype or a tensor subclass other than DTensor, or
            float16 and still scaled, or if ``FullyShardedDataParallel`` has flattened the parameter.
        CollectiveError: If another rank ends, or does not make this call within the time-out (a ``RuntimeError``).

    Reference:
        Yun, *ZNorm: Z-Score Gradient Normalization Accelerating Skip-Connected Network Training without Architectural
        Modification*, arXiv 2408.01215, the update rule of its methodology.

    Example::

        >>> from lightning_znorm import znorm_
        >>> layer = torch.nn.Linear(3, 2)
        >>> layer(torch.eye(3)).square().sum().backward()
        >>> stats = znorm_(layer.parameters())
        >>> layer.weight.grad.mean().abs() < 1e-6, (layer.weight.grad.std(correction=0) - 1).abs() < 1e-6
        (tensor(True), tensor(True))
        >>> stats.cosine.shape
        torch.Size([2])

    """
    eps, center = check_eps(eps), check_center(center)
    parameters = _require_parameters(parameters)
    if not any(map(is_dtensor, parameters)):
        return znorm_gradients_(_require_gradients(parameters, grad_scale), eps, grad_scale, center)
    gradients = _collect(parameters, grad_scale)
    sums = measure_moments(gradients)
    add_up(sums)
    return znorm_sharded_(gradients, sums, eps, grad_scale, center)


@torch.no_grad()
def centralize_(parameters: Tensor | Iterable[Tensor], grad_scale: Tensor | None = None) -> GradientStats:
    r"""Give the gradient of each output channel of each parameter zero mean, in place.

    .. math::
        g_{i} \leftarrow g_{i} - \frac{1}{M} \sum_{j=1}^{M} g_{ij}

    for gradients of two or more dimensions, with :math:`i` the index of dimension 0 (the output channel of ``Linear``
    and ``Conv``, the input channel of ``ConvTranspose``, the row of ``Embedding``) and :math:`j` that of the other
    dimensions taken together, of :math:`M` elements. Gradients of fewer dimensions stay unchanged, and so do channels
    of one element, which would always become zero. Exactness and special cases are as for :func:`znorm_`.

    Args:
        parameters: A tensor, or an iterable of tensors, whose ``.grad`` is centralized.
        grad_scale: For gradients that a :class:`torch.amp.GradScaler` has not unscaled yet: its scale, a tensor of one
            element. The result stays multiplied by it; the statistics refer to the gradients without it.

    Returns:
        Mean and standard deviation of each whole gradient, and the cosine between it and the centralized one,
        see :class:`GradientStats`.

    Raises:
        TypeError: As :func:`znorm_`.
        ValueError: If the elements of a gradient share memory.

    Reference:
        Yong, Huang, Hua and Zhang, *Gradient Centralization: A New Optimization Technique for Deep Neural Networks*,
        arXiv 2004.01461, Eq. (1) of Sec. 3.2.

    Example::

        >>> from lightning_znorm import centralize_
        >>> layer = torch.nn.Linear(3, 2)
        >>> layer(torch.eye(3)).square().sum().backward()
        >>> stats = centralize_(layer.parameters())
        >>> layer.weight.grad.mean(dim=1).abs() < 1e-6
        tensor([True, True])

    """
    parameters = _require_parameters(parameters)
    if not any(map(is_dtensor, parameters)):
        return centralize_gradients_(_require_gradients(parameters, grad_scale), grad_scale)
    gradients = _collect(parameters, grad_scale)
    sums = measure_rows(gradients)
    add_up(sums)
    return centralize_sharded_(gradients, sums, grad_scale)


def _require_parameters(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    """Return the parameters, each once."""
    parameters = list_unique(_require_tensors(parameters))
    if not parameters:
        warnings.warn(
            "`parameters` is empty (an exhausted generator?): no gradient was transformed.", UserWarning, stacklevel=4
        )
    for i, parameter in enumerate(parameters):
        if is_flattened(parameter):
            raise ArgumentTypeError(
                f"`parameters[{i}]` belongs to FullyShardedDataParallel, which does not say here which part of the"
                " gradient this rank holds. Use the callback in a Trainer with `strategy='fsdp'`, or `fully_shard`"
                " (FSDP2)."
            )
    return parameters


def _require_gradients(parameters: Sequence[Tensor], grad_scale: Tensor | None) -> list[Tensor]:
    """Return the gradients of the parameters, or raise if one of them cannot be transformed."""
    gradients = [gradient for gradient in list_gradients(parameters) if gradient.numel()]
    if not are_plain(gradients, scaled=grad_scale is not None):
        for i, parameter in enumerate(parameters):
            if parameter.grad is not None and parameter.grad.numel():
                require_transformable(parameter.grad, f"parameters[{i}]", scaled=grad_scale is not None)
    return gradients


def _collect(parameters: Sequence[Tensor], grad_scale: Tensor | None) -> ShardedGradients:
    """Return this rank's parts of gradients some of which are DTensors."""
    names = {parameter: f"parameters[{i}]" for i, parameter in enumerate(parameters)}
    found = ((parameter, find_dtensor_layout(parameter)) for parameter in parameters if is_dtensor(parameter))
    layouts = {parameter: layout for parameter, layout in found if layout is not None}
    gradients = collect_gradients(parameters, layouts.get)
    require_transformable_parts(gradients, names.__getitem__, scaled=grad_scale is not None)
    return gradients


def _require_tensors(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    """Return the argument ``parameters`` as a list; raise ``TypeError`` unless it is one or more tensors."""
    if isinstance(parameters, Tensor):
        return [parameters]
    expected = "Expected argument `parameters` to be a tensor or an iterable of tensors"
    remedy = "Pass `model.parameters()`."
    if not isinstance(parameters, Iterable):
        raise ArgumentTypeError(f"{expected}, but got {describe(parameters)}. {remedy}")
    parameters = list(parameters)
    if not all(issubclass(cls, Tensor) for cls in {*map(type, parameters)}):
        other = next(entry for entry in parameters if not isinstance(entry, Tensor))
        raise ArgumentTypeError(f"{expected}, but one of its entries is {describe(other)}. {remedy}")
    return parameters


def check_eps(eps: float) -> float:
    """Return ``eps`` as a ``float``; raise ``ValueError`` unless it is a positive finite number."""
    return require_positive("eps", eps, "The default is 1e-10.", kind="positive finite number")


def check_center(center: bool) -> bool:
    """Return ``center``; raise ``ValueError`` unless it is true or false."""
    if not isinstance(center, bool):
        raise ArgumentValueError(f"Expected argument `center` to be True or False, but got {describe(center)}.")
    return center
