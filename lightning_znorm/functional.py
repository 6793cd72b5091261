"""Gradient transforms as functions on parameters, in the manner of :func:`torch.nn.utils.clip_grad_norm_`."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_znorm.backends import clipping
from lightning_znorm.backends._memory import to_device
from lightning_znorm.backends.choice import choose
from lightning_znorm.backends.gradients import are_plain, group_by_device, require_transformable
from lightning_znorm.errors import ArgumentTypeError, ArgumentValueError, describe, require_positive

__all__ = ["DeviceStats", "GradientStats", "centralize_", "znorm_"]


@dataclass(frozen=True)
class DeviceStats:
    """Statistics of the gradients on one device.

    Attributes:
        index: Positions of these gradients among all parameters that have a gradient, of length ``n``.
        mean: Mean of each gradient before the transform, shape ``(n,)``, float64 (float32 if the device has
            no float64), on the device.
        std: Population standard deviation before the transform, shape ``(n,)``.
        cosine: Cosine between the gradient before and after the transform, shape ``(n,)``.

    """

    index: tuple[int, ...]
    mean: Tensor
    std: Tensor
    cosine: Tensor


@dataclass(frozen=True)
class GradientStats:
    r"""Statistics of :func:`znorm_` or :func:`centralize_`: an entry per parameter with a gradient, in the same order.

    The statistics stay on the devices of their gradients, so that computing them waits for no device. A gradient that
    was left unchanged (one element, inf or NaN) has its statistics and a cosine of 1.

    ``mean``, ``std`` and ``cosine`` are tensors of shape ``(n,)``: on the device if all gradients share one, otherwise
    on the CPU (which waits for the devices). A positive cosine between the gradient before and after, for ZNorm
    :math:`\sigma / \sqrt{\mu^2 + \sigma^2}`, means that the step still points downhill.

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
        gathered = torch.cat([getattr(stats, name).cpu() for stats in groups])
        order = torch.tensor([i for stats in groups for i in stats.index], device="cpu")
        return torch.empty_like(gathered).index_copy_(0, order, gathered)


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
    return znorm_gradients_(_require_gradients(parameters, grad_scale), eps, grad_scale, center)


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
    return centralize_gradients_(_require_gradients(parameters, grad_scale), grad_scale)


def znorm_gradients_(
    gradients: Sequence[Tensor], eps: float, grad_scale: Tensor | None = None, center: bool = True
) -> GradientStats:
    """Normalize as :func:`znorm_`, without its checks; a gradient that occurs twice is edited once."""
    return _edit_by_device(gradients, lambda members: choose(members).znorm_(members, eps, grad_scale, center))


def centralize_gradients_(gradients: Sequence[Tensor], grad_scale: Tensor | None = None) -> GradientStats:
    """Centralize as :func:`centralize_`, without its checks; a gradient that occurs twice is edited once."""
    return _edit_by_device(gradients, lambda members: choose(members).centralize_(members, grad_scale))


def clip_gradients_(
    gradients: Sequence[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    grad_scale: Tensor | None = None,
    with_stats: bool = True,
) -> GradientStats:
    """Scale all gradients by one factor so that their joint norm is at most ``max_norm``, and return their statistics.

    The gradients are not checked; one that occurs twice counts once and is edited once. If an element is inf or NaN,
    all stay unchanged. Statistics need two more passes over the gradients.
    """
    groups = group_by_device(gradients)
    unique = {device: _unique(members) for device, (_, members) in groups.items()}
    norms = [choose(members).norm(members, norm_type) for members in unique.values()]
    norm = clipping.combine(norms, norm_type)
    scale = 1.0 if grad_scale is None else grad_scale.to(norm).reshape(())
    factor = clipping.bound(norm, max_norm, scale)
    stats = {}
    for device, (index, members) in groups.items():
        if with_stats:
            stats[device] = DeviceStats(index, *choose(members).measure(members).statistics(scale))
        choose(members).scale_(unique[device], factor.to(device))
    return GradientStats(stats)


def list_gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Return the gradients of the parameters that have one."""
    return [gradient for parameter in parameters if (gradient := parameter.grad) is not None]


def _edit_by_device(gradients: Sequence[Tensor], edit_: Callable[[list[Tensor]], Tensor]) -> GradientStats:
    stats = {}
    for device, (index, members) in group_by_device(gradients).items():
        unique = _unique(members)
        values = edit_(unique)
        if len(unique) < len(members):  # parameters that share a gradient
            columns = {id(member): column for column, member in enumerate(unique)}
            values = values[:, to_device([columns[id(member)] for member in members], torch.int64, values.device)]
        stats[device] = DeviceStats(index, *values)
    return GradientStats(stats)


def _unique(tensors: list[Tensor]) -> list[Tensor]:
    """Return each tensor once; the hash of a tensor takes longer than its ``id``."""
    if len({*map(id, tensors)}) == len(tensors):
        return tensors
    return list({id(tensor): tensor for tensor in tensors}.values())


def _require_gradients(parameters: Tensor | Iterable[Tensor], grad_scale: Tensor | None) -> list[Tensor]:
    """Return the gradients of the parameters, each once, or raise if one of them cannot be transformed."""
    parameters = _unique(_require_tensors(parameters))
    if not parameters:
        warnings.warn(
            "`parameters` is empty (an exhausted generator?): no gradient was transformed.", UserWarning, stacklevel=4
        )
    gradients = [gradient for gradient in list_gradients(parameters) if gradient.numel()]
    if not are_plain(gradients, scaled=grad_scale is not None):
        for i, parameter in enumerate(parameters):
            if parameter.grad is not None and parameter.grad.numel():
                require_transformable(parameter.grad, f"parameters[{i}]", scaled=grad_scale is not None)
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
