"""ZNorm, gradient centralization and gradient clipping as Lightning callbacks."""

import math
from collections.abc import Sequence

from torch import Tensor

from lightning_znorm.engine.nonfinite import Nonfinite
from lightning_znorm.engine.transform import LogStats
from lightning_znorm.errors import require_positive, with_known_keywords
from lightning_znorm.functional import (
    GradientStats,
    RankGroup,
    ShardedGradients,
    centralize_gradients_,
    centralize_sharded_,
    check_center,
    check_eps,
    clip_gradients_,
    clip_sharded_,
    list_gradients,
    measure_moments,
    measure_norms,
    measure_rows,
    znorm_gradients_,
    znorm_sharded_,
)
from lightning_znorm.transform import GradientTransform

__all__ = ["GradientCentralization", "GradientClipping", "ZNorm"]


class ZNorm(GradientTransform):
    r"""Normalize each parameter's gradient to zero mean and unit standard deviation before every optimizer step.

    .. math::
        g \leftarrow \frac{g - \mu(g)}{\sigma(g) + \epsilon}

    with the population mean and standard deviation over all elements of one parameter tensor, the paper's update
    rule (arXiv 2408.01215). Works in the Trainers and command lines of ``lightning.pytorch`` and ``pytorch_lightning``.

    ``center=False`` is a control that only sets the scale, to the same L2 norm:

    .. math::
        g \leftarrow \frac{g}{\sqrt{\frac{1}{d} \sum_{i} g_i^2} + \epsilon}

    with the :math:`d` elements of the tensor. What ZNorm gains over it is the effect of centring; what it gains over
    plain training, the effect of scale.

    Note:
        - A normalized gradient has L2 norm ``sqrt(numel)``, whatever the loss. Under plain SGD the baseline's learning
          rate is far too high: start at a hundredth of it. Adam is nearly invariant to the scale.
        - A parameter whose true gradient is zero (a convolution's bias before BatchNorm) has rounding noise for a
          gradient, and noise of unit size after ZNorm: ``min_ndim=2`` leaves such parameters out.
        - Parameters that ``exclude`` and ``min_ndim`` leave out keep their raw gradient: under SGD at ZNorm's learning
          rate they hardly move. Give them a parameter group with the learning rate of plain SGD.
        - A gradient of one element, or with an inf or NaN, stays unchanged; a constant one becomes zero (1 or -1 with
          ``center=False``).

    Args:
        eps: Added to each standard deviation or root mean square, in the units of the gradient.
        exclude: Shell-style patterns of parameter names whose gradients stay unchanged, see
            :class:`~lightning_znorm.GradientTransform`.
        min_ndim: Parameters with fewer dimensions keep their gradient.
        center: Whether the mean is subtracted; ``False`` only divides by the root mean square.
        start_step: First optimizer step (from 0) in which ZNorm runs.
        stop_step: First optimizer step in which it no longer runs, ``None`` for never.
        nonfinite: ``"propagate"`` leaves a gradient with an inf or NaN unchanged, ``"skip"`` skips the optimizer's
            step and counts it (``znorm/skipped_steps``), ``"raise"`` raises an error that names the parameter.
        max_skips: Number of consecutive steps that ``"skip"`` skips; the next one raises an error.
        log_stats: ``False``, ``"summary"`` (``znorm/mean_abs``, ``znorm/std_min``, ``znorm/std_median``,
            ``znorm/std_max``, ``znorm/cosine_mean``, ``znorm/cosine_min``) or ``"layers"`` (``znorm/mean/<name>``,
            ``znorm/std/<name>``), all of the gradient before it is normalized.
        enabled: ``False`` switches the callback off.

    Raises:
        TypeError: If an argument is unknown, or ``exclude`` is anything but strings.
        ValueError: If an argument is out of its range.
        MisconfigurationException: At the start of ``fit``, if the Trainer's configuration is not supported, a pattern
            in ``exclude`` matches no parameter, or there is another enabled ``ZNorm``.

    Example::

        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_znorm import ZNorm
        >>> quiet = dict(barebones=False, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        ...              enable_model_summary=False, accelerator="cpu")
        >>> Trainer(max_steps=2, limit_val_batches=0, callbacks=[ZNorm(min_ndim=2)], **quiet).fit(BoringModel())

    """

    log_prefix = "znorm"
    sets_norm = True

    @with_known_keywords
    def __init__(
        self,
        eps: float = 1e-10,
        exclude: str | Sequence[str] = (),
        min_ndim: int = 0,
        center: bool = True,
        start_step: int = 0,
        stop_step: int | None = None,
        nonfinite: Nonfinite = "propagate",
        max_skips: int = 10,
        log_stats: LogStats = False,
        enabled: bool = True,
    ) -> None:
        self.eps = check_eps(eps)
        self.center = check_center(center)
        super().__init__(exclude, min_ndim, start_step, stop_step, nonfinite, max_skips, log_stats, enabled)

    def transform(self, parameters: Sequence[Tensor], grad_scale: Tensor | None = None) -> GradientStats:
        """Normalize the gradients in place, as :func:`~lightning_znorm.znorm_` does."""
        return znorm_gradients_(list_gradients(parameters), self.eps, grad_scale, self.center)

    def measure_shards(self, gradients: ShardedGradients) -> dict[RankGroup, Tensor]:
        """Return two sums per parameter."""
        return measure_moments(gradients)

    def transform_shards(
        self, gradients: ShardedGradients, sums: dict[RankGroup, Tensor], grad_scale: Tensor | None = None
    ) -> GradientStats:
        """Normalize by the statistics of the whole gradients."""
        return znorm_sharded_(gradients, sums, self.eps, grad_scale, self.center)


class GradientCentralization(GradientTransform):
    r"""Give the gradient of each output channel zero mean before every optimizer step.

    .. math::
        g_{i} \leftarrow g_{i} - \frac{1}{M} \sum_{j=1}^{M} g_{ij}

    for parameters of two or more dimensions, with :math:`i` the index of dimension 0 and :math:`j` that of the other
    dimensions taken together. It is a baseline of the ZNorm paper. Works in the Trainers and
    command lines of ``lightning.pytorch`` and ``pytorch_lightning``, and with :func:`~lightning_znorm.attach`.

    Note:
        - It is a projection: the norm never grows, and the learning rate of plain training remains a good start.
        - Channels of one element stay unchanged, and so does a gradient with an inf or NaN.
        - With ``ZNorm`` in the same Trainer both run, in the order of the callbacks.

    Args:
        exclude: Shell-style patterns of parameter names whose gradients stay unchanged, see
            :class:`~lightning_znorm.GradientTransform`.
        min_ndim: Parameters with fewer dimensions keep their gradient; values below 2 make no difference. 4 restricts
            it to two-dimensional convolutions.
        start_step: First optimizer step (from 0) in which it runs.
        stop_step: First optimizer step in which it no longer runs, ``None`` for never.
        nonfinite: ``"propagate"`` leaves a gradient with an inf or NaN unchanged, ``"skip"`` skips the optimizer's
            step and counts it (``gc/skipped_steps``), ``"raise"`` raises an error that names the parameter.
        max_skips: Number of consecutive steps that ``"skip"`` skips; the next one raises an error.
        log_stats: ``False``, ``"summary"`` (``gc/mean_abs``, ``gc/std_min``, ``gc/std_median``, ``gc/std_max``,
            ``gc/cosine_mean``, ``gc/cosine_min``) or ``"layers"`` (``gc/mean/<name>``, ``gc/std/<name>``), all of the
            gradient before it is centralized.
        enabled: ``False`` switches the callback off.

    Raises:
        TypeError: If an argument is unknown, or ``exclude`` is anything but strings.
        ValueError: If an argument is out of its range.
        MisconfigurationException: At the start of ``fit``, if the Trainer's configuration is not supported, a pattern
            in ``exclude`` matches no parameter, or there is another enabled ``GradientCentralization``.

    Reference:
        Yong, Huang, Hua and Zhang, *Gradient Centralization: A New Optimization Technique for Deep Neural Networks*,
        arXiv 2004.01461, Eq. (1) of Sec. 3.2.

    Example::

        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_znorm import GradientCentralization
        >>> quiet = dict(barebones=False, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        ...              enable_model_summary=False, accelerator="cpu")
        >>> model = BoringModel()
        >>> Trainer(max_steps=2, limit_val_batches=0, callbacks=[GradientCentralization()], **quiet).fit(model)

    """

    log_prefix = "gc"

    @with_known_keywords
    def __init__(
        self,
        exclude: str | Sequence[str] = (),
        min_ndim: int = 2,
        start_step: int = 0,
        stop_step: int | None = None,
        nonfinite: Nonfinite = "propagate",
        max_skips: int = 10,
        log_stats: LogStats = False,
        enabled: bool = True,
    ) -> None:
        super().__init__(exclude, min_ndim, start_step, stop_step, nonfinite, max_skips, log_stats, enabled)

    def transform(self, parameters: Sequence[Tensor], grad_scale: Tensor | None = None) -> GradientStats:
        """Centralize the gradients in place, as :func:`~lightning_znorm.centralize_` does."""
        return centralize_gradients_(list_gradients(parameters), grad_scale)

    def measure_shards(self, gradients: ShardedGradients) -> dict[RankGroup, Tensor]:
        """Return sums for the statistics, and those of rows of which ranks hold parts."""
        return measure_rows(gradients)

    def transform_shards(
        self, gradients: ShardedGradients, sums: dict[RankGroup, Tensor], grad_scale: Tensor | None = None
    ) -> GradientStats:
        """Centralize the rows of the whole gradients."""
        return centralize_sharded_(gradients, sums, grad_scale)


class GradientClipping(GradientTransform):
    r"""Bound the norm of all gradients together before every optimizer step.

    .. math::
        g \leftarrow g \cdot \min\left(1, \frac{c}{\lVert g \rVert_p + 10^{-6}}\right)

    with :math:`c` the largest norm, :math:`g` the gradients of all parameters of the optimizer that is about to step,
    taken as one vector, and the formula of :func:`torch.nn.utils.clip_grad_norm_`. It is what the Trainer's
    ``gradient_clip_val`` does, as a transform: also for manual optimization, with :func:`~lightning_znorm.attach`,
    with a schedule, and among other transforms. The norm is computed as in float64.

    Note:
        - Parameters that ``exclude`` and ``min_ndim`` leave out do not count in the norm. By default there are none.
        - If an element is inf or NaN, so is the norm, and all gradients stay unchanged.
        - The Trainer's ``gradient_clip_val`` clips a second time, after it; a warning asks to remove one of the two.

    Args:
        max_norm: Largest norm after clipping, in the units of the gradient.
        norm_type: The exponent :math:`p` of the norm, a positive number; ``inf`` is the largest absolute element.
        exclude: Shell-style patterns of parameter names whose gradients stay unchanged, see
            :class:`~lightning_znorm.GradientTransform`.
        min_ndim: Parameters with fewer dimensions keep their gradient.
        start_step: First optimizer step (from 0) in which it runs.
        stop_step: First optimizer step in which it no longer runs, ``None`` for never.
        nonfinite: ``"propagate"`` leaves all gradients unchanged if one has an inf or NaN, ``"skip"`` skips the
            optimizer's step and counts it (``clip/skipped_steps``), ``"raise"`` raises an error that names the
            parameter.
        max_skips: Number of consecutive steps that ``"skip"`` skips; the next one raises an error.
        log_stats: ``False``, ``"summary"`` (``clip/mean_abs``, ``clip/std_min``, ``clip/std_median``,
            ``clip/std_max``, ``clip/cosine_mean``, ``clip/cosine_min``) or ``"layers"`` (``clip/mean/<name>``,
            ``clip/std/<name>``), all of the gradient before it is clipped. Clipping needs none of them, so without
            ``log_stats`` they are not measured, and the statistics, also ``stats`` of
            :func:`~lightning_znorm.attach`, have no entries.
        enabled: ``False`` switches the callback off.

    Raises:
        TypeError: If an argument is unknown, or ``exclude`` is anything but strings.
        ValueError: If an argument is out of its range.
        MisconfigurationException: At the start of ``fit``, if the Trainer's configuration is not supported, a pattern
            in ``exclude`` matches no parameter, or there is another enabled ``GradientClipping``.

    Example::

        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_znorm import GradientClipping
        >>> quiet = dict(barebones=False, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        ...              enable_model_summary=False, accelerator="cpu")
        >>> Trainer(max_steps=2, limit_val_batches=0, callbacks=[GradientClipping(0.5)], **quiet).fit(BoringModel())

    """

    log_prefix = "clip"
    clips = True

    @with_known_keywords
    def __init__(
        self,
        max_norm: float = 1.0,
        norm_type: float = 2.0,
        exclude: str | Sequence[str] = (),
        min_ndim: int = 0,
        start_step: int = 0,
        stop_step: int | None = None,
        nonfinite: Nonfinite = "propagate",
        max_skips: int = 10,
        log_stats: LogStats = False,
        enabled: bool = True,
    ) -> None:
        self.max_norm = require_positive("max_norm", max_norm, "The usual value is 1.0.")
        self.norm_type = (
            math.inf if norm_type == math.inf else require_positive("norm_type", norm_type, "inf is allowed.")
        )
        super().__init__(exclude, min_ndim, start_step, stop_step, nonfinite, max_skips, log_stats, enabled)

    def transform(self, parameters: Sequence[Tensor], grad_scale: Tensor | None = None) -> GradientStats:
        """Clip the gradients in place."""
        return clip_gradients_(
            list_gradients(parameters), self.max_norm, self.norm_type, grad_scale, with_stats=bool(self.log_stats)
        )

    def measure_shards(self, gradients: ShardedGradients) -> dict[RankGroup, Tensor]:
        """Return the norms of what each rank holds."""
        return measure_norms(gradients, self.norm_type, with_stats=bool(self.log_stats))

    def transform_shards(
        self, gradients: ShardedGradients, sums: dict[RankGroup, Tensor], grad_scale: Tensor | None = None
    ) -> GradientStats:
        """Clip by the norm of the whole gradients."""
        with_stats = bool(self.log_stats)
        return clip_sharded_(gradients, sums, self.max_norm, self.norm_type, grad_scale, with_stats)
