"""Gradient transforms as functions on parameters, in the manner of :func:`torch.nn.utils.clip_grad_norm_`."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_znorm.backends import choose_centralize_, choose_znorm_
from lightning_znorm.errors import describe, finite_number

__all__ = [
    "DeviceStats",
    "GradientStats",
    "centralize_",
    "check_center",
    "check_eps",
    "group_by_device",
    "require_transformable",
    "znorm_",
]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class DeviceStats:
    """Statistics of those gradients that live on one device.

    Attributes:
        index: Positions of these gradients among all parameters that have a gradient, of length ``n``.
        mean: Mean of each gradient before it was transformed, shape ``(n,)``, float64 (float32 on MPS, which has no
            float64), on the device.
        std: Population standard deviation before, shape ``(n,)``.
        cosine: Cosine between the gradient before and after, shape ``(n,)``.

    """

    index: tuple[int, ...]
    mean: Tensor
    std: Tensor
    cosine: Tensor


@dataclass(frozen=True)
class GradientStats:
    r"""What :func:`znorm_` or :func:`centralize_` found, one entry per parameter with a gradient, in their order.

    The statistics stay on the devices of their gradients, so that making them waits for no device. A gradient that was
    left as it is (one element, inf or NaN) has the statistics of that untouched gradient and a cosine of 1.

    ``mean``, ``std`` and ``cosine`` are tensors of shape ``(n,)``: on the device itself when all gradients share one,
    gathered on the CPU (which waits for the devices) when they do not. The cosine between the gradient before and
    after, for ZNorm :math:`\sigma / \sqrt{\mu^2 + \sigma^2}`, tells by its sign that the step still points downhill.

    Attributes:
        by_device: The statistics of each device, in the order of first appearance.

    Example::

        >>> parameter = torch.nn.Parameter(torch.zeros(4))
        >>> parameter.grad = torch.tensor([1.0, 2.0, 3.0, 6.0])
        >>> stats = znorm_(parameter)
        >>> stats.mean
        tensor([3.], dtype=torch.float64)
        >>> len(stats)
        1

    """

    by_device: Mapping[torch.device, DeviceStats]

    def __len__(self) -> int:
        return sum(len(stats.index) for stats in self.by_device.values())

    @property
    def mean(self) -> Tensor:
        """Mean of each gradient before the transform."""
        return self._gather("mean")

    @property
    def std(self) -> Tensor:
        """Population standard deviation of each gradient before the transform."""
        return self._gather("std")

    @property
    def cosine(self) -> Tensor:
        """Cosine between each gradient before and after the transform."""
        return self._gather("cosine")

    def _gather(self, name: str) -> Tensor:
        if not self.by_device:
            return torch.empty(0, dtype=torch.float64, device="cpu")
        groups = list(self.by_device.values())
        if len(groups) == 1:
            values: Tensor = getattr(groups[0], name)
            return values
        joined = torch.cat([getattr(stats, name).cpu() for stats in groups])
        order = torch.tensor([i for stats in groups for i in stats.index], device="cpu")
        return torch.empty_like(joined).index_copy_(0, order, joined)


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

    Afterwards every normalized gradient has L2 norm :math:`\sqrt{d}`. The result is that of float64 to 1e-6 of its norm
    for float32 gradients with a mean of up to ten standard deviations (the worst measured on a CPU is 5.4e-7, over
    normal noise, signs, few or rounded values, zeros, outliers, denormals and values near the largest of float32), to
    1e-12 for float64, and rounded once for float16 and bfloat16. No finite gradient becomes inf or NaN. Parameters
    without a gradient and empty ones are skipped, a parameter that is listed twice is normalized once, a gradient of
    one element or with an inf or NaN stays as it is, and a constant gradient becomes exactly zero (with
    ``center=False``, each of its elements becomes 1 or -1 but for ``eps``, and zeros stay).

    Args:
        parameters: A tensor, or an iterable of tensors, of any shape, device and dtype float16, bfloat16, float32 or
            float64, whose ``.grad`` is normalized.
        eps: Added to each standard deviation or root mean square, in the units of the gradient.
        grad_scale: For gradients that a :class:`torch.amp.GradScaler` has not unscaled yet: its scale, a tensor of one
            element. The result is multiplied by it, ``eps`` and the statistics refer to the gradients without it, so
            that an optimizer that divides by it itself (a fused one) makes the right step.
        center: Whether the mean is subtracted.

    Returns:
        Mean, standard deviation and cosine of each gradient, see :class:`GradientStats`. Without centring the cosine
        is 1.

    Raises:
        ValueError: If ``eps`` is not a positive finite number, ``center`` is neither true nor false, or the elements of
            a gradient share memory.
        TypeError: If a gradient is sparse, complex, of an unsupported dtype or a tensor subclass (a sharded DTensor),
            or float16 and still scaled.

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

    def edit_(gradients: list[Tensor]) -> Tensor:
        return choose_znorm_(gradients[0].device)(gradients, eps, grad_scale, center)

    return _transform(parameters, edit_, grad_scale)


@torch.no_grad()
def centralize_(parameters: Tensor | Iterable[Tensor], grad_scale: Tensor | None = None) -> GradientStats:
    r"""Give the gradient of each output channel of each parameter zero mean, in place.

    .. math::
        g_{i} \leftarrow g_{i} - \frac{1}{M} \sum_{j=1}^{M} g_{ij}

    for gradients of two or more dimensions, with :math:`i` the index of dimension 0 (the output channel of ``Linear``
    and ``Conv``, the input channel of ``ConvTranspose``, the row of ``Embedding``) and :math:`j` that of the other
    dimensions taken together, of :math:`M` elements. Gradients of fewer dimensions stay as they are, and so do channels
    of one element, which would always become zero. Exactness and everything special as in :func:`znorm_`.

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

    def edit_(gradients: list[Tensor]) -> Tensor:
        return choose_centralize_(gradients[0].device)(gradients, grad_scale)

    return _transform(parameters, edit_, grad_scale)


def _transform(
    parameters: Tensor | Iterable[Tensor],
    edit_: Callable[[list[Tensor]], Tensor],
    grad_scale: Tensor | None,
) -> GradientStats:
    """Edit the gradients, those of one device at a time, each once."""
    parameters = list(dict.fromkeys(_tensors(parameters)))
    if not parameters:
        warnings.warn(
            "`parameters` is empty (an exhausted generator?): no gradient was transformed.", UserWarning, stacklevel=4
        )
    gradients = [gradient for p in parameters if (gradient := p.grad) is not None and gradient.numel()]
    if not are_plain(gradients, scaled=grad_scale is not None):
        for i, parameter in enumerate(parameters):
            if parameter.grad is not None and parameter.grad.numel():
                require_transformable(parameter.grad, f"parameters[{i}]", scaled=grad_scale is not None)
    by_device = {
        device: DeviceStats(index, *edit_(members)) for device, (index, members) in group_by_device(gradients).items()
    }
    return GradientStats(by_device)


def _tensors(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    """Return the argument ``parameters`` as a list; raise ``TypeError`` for anything but tensors."""
    if isinstance(parameters, Tensor):
        return [parameters]
    expected = "Expected argument `parameters` to be a tensor or an iterable of tensors"
    remedy = "Pass `model.parameters()`."
    if not isinstance(parameters, Iterable):
        raise TypeError(f"{expected}, but got {describe(parameters)}. {remedy}")
    parameters = list(parameters)
    if not all(issubclass(cls, Tensor) for cls in {*map(type, parameters)}):
        wrong = next(entry for entry in parameters if not isinstance(entry, Tensor))
        raise TypeError(f"{expected}, but one of its entries is {describe(wrong)}. {remedy}")
    return parameters


def group_by_device(tensors: Sequence[Tensor]) -> dict[torch.device, tuple[tuple[int, ...], list[Tensor]]]:
    """Return the positions and the tensors of each device, in the order of first appearance."""
    if len({tensor.device for tensor in tensors}) == 1:
        return {tensors[0].device: (tuple(range(len(tensors))), list(tensors))}
    groups: dict[torch.device, dict[int, Tensor]] = {}
    for position, tensor in enumerate(tensors):
        groups.setdefault(tensor.device, {})[position] = tensor
    return {device: (tuple(members), list(members.values())) for device, members in groups.items()}


def are_plain(gradients: Iterable[Tensor], scaled: bool = False) -> bool:
    """Say quickly whether all gradients are certain to be transformable; :func:`require_transformable` is exact."""
    return all(
        type(gradient) is Tensor
        and gradient.layout is torch.strided
        and (gradient.dtype is torch.float32 or (gradient.dtype in _DTYPES and not scaled))
        and gradient.is_contiguous()
        for gradient in gradients
    )


def require_transformable(gradient: Tensor, name: str, scaled: bool = False) -> None:
    """Raise if a gradient cannot be transformed in place.

    Args:
        gradient: The ``.grad`` of a parameter.
        name: How the error names the parameter.
        scaled: Whether it is still multiplied by a GradScaler's scale.

    Raises:
        TypeError: If the gradient is sparse, complex, of an unsupported dtype or a tensor subclass, or float16 and
            still scaled.
        ValueError: If several of its elements share one place in memory.

    """
    remedy = "Leave it out (`exclude=` of the callback takes patterns of parameter names)"
    if gradient.layout != torch.strided:
        raise TypeError(
            f"The gradient of parameter `{name}` is sparse ({gradient.layout}), but mean and standard deviation are"
            f" those of a whole dense tensor. {remedy}, or make it dense (`torch.nn.Embedding(sparse=False)`)."
        )
    if gradient.is_complex():
        raise TypeError(f"The gradient of parameter `{name}` is complex, expected a real one. {remedy}.")
    if gradient.dtype not in _DTYPES:
        raise TypeError(f"The gradient of parameter `{name}` has dtype {gradient.dtype}, expected one of {_DTYPES}.")
    if scaled and gradient.dtype == torch.float16:
        raise TypeError(
            f"The gradient of parameter `{name}` is float16 and still multiplied by a GradScaler's scale: transformed"
            " and scaled, it would overflow. Keep the parameters in float32 (`precision='16-mixed'` of a Trainer,"
            " `torch.autocast` in a loop of your own), or train without a GradScaler."
        )
    if type(gradient) not in (Tensor, torch.nn.Parameter):
        raise TypeError(
            f"The gradient of parameter `{name}` is a {type(gradient).__name__}, expected a plain tensor: the"
            " statistics of a sharded or wrapped gradient are not supported yet."
        )
    if any(stride == 0 and size > 1 for size, stride in zip(gradient.shape, gradient.stride(), strict=True)):
        raise ValueError(
            f"Elements of the gradient of parameter `{name}` share memory (strides {gradient.stride()}), so that it"
            " cannot be edited in place. Give the parameter a gradient of its own: `p.grad = p.grad.clone()`."
        )


def check_eps(eps: float) -> float:
    """Return ``eps`` as a ``float``; raise ``ValueError`` unless it is a positive finite number."""
    number = finite_number(eps)
    if number is None or number <= 0:
        raise ValueError(
            f"Expected argument `eps` to be a positive finite number, but got {describe(eps)}. The default is 1e-10."
        )
    return number


def check_center(center: bool) -> bool:
    """Return ``center``; raise ``ValueError`` unless it is true or false."""
    if not isinstance(center, bool):
        raise ValueError(f"Expected argument `center` to be True or False, but got {describe(center)}.")
    return center
