"""The callback that every gradient transform derives from."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor
from torch.optim import Optimizer

from lightning_znorm._checks import (
    refuse_closure_reevaluation,
    refuse_manual_optimization,
    refuse_unsupported,
    refuse_untransformable,
    warn_about_clipping,
    warn_about_idleness,
    warn_about_missing_logger,
)
from lightning_znorm._compat import Callback, MisconfigurationException
from lightning_znorm._names import ParameterNames
from lightning_znorm._stats_logging import log_gradient_stats
from lightning_znorm.functional import GradientStats, require_transformable

if TYPE_CHECKING:
    import lightning.pytorch as pl

__all__ = ["GradientTransform"]

LogStats = Literal[False, "summary", "layers"]


class GradientTransform(Callback, ABC):
    """Edit the gradients of the optimizer that is about to step: the base of :class:`~lightning_znorm.ZNorm`.

    The transform runs on ``on_before_optimizer_step``: after the last backward of an accumulation and after DDP has
    averaged the gradients, before the Trainer clips them and before the optimizer adds its own weight decay. It sees
    the parameters of that optimizer alone, each once. A subclass implements :meth:`transform`; overriding
    :meth:`should_transform` replaces the schedule.

    Gradients are edited in place, so that DDP's bucket views and memory formats survive. Under DDP they are the same on
    all ranks when the hook runs, so that no communication is needed.

    Supported are one device and DDP, ``precision="32-true"`` and ``"bf16-mixed"``, automatic optimization. Everything
    else raises an error before the first step.

    Args:
        exclude: Shell-style patterns (:mod:`fnmatch`) of parameter names, as in ``model.named_parameters()`` without
            the ``_orig_mod.`` that ``torch.compile`` adds; matching parameters keep their gradient. A single string is
            one pattern.
        min_ndim: Parameters with fewer dimensions keep their gradient. 2 leaves out biases and the weights and biases
            of normalization layers.
        start_step: First optimizer step (counted from 0, as ``trainer.global_step``) in which the transform runs.
        stop_step: First optimizer step in which it no longer runs, ``None`` for never.
        log_stats: ``"summary"`` logs a few figures over all tensors, ``"layers"`` one mean and one standard deviation
            per parameter name, both to the Trainer's loggers in steps in which these are due; ``False`` logs nothing.
        enabled: ``False`` makes the callback do nothing at all, for configuration files.

    Raises:
        ValueError: If an argument is out of its range.
        MisconfigurationException: At the start of ``fit``, if the Trainer's configuration is not supported.

    Example::

        >>> import torch
        >>> from lightning_znorm import GradientStats, GradientTransform
        >>> class Sign(GradientTransform):
        ...     def transform(self, parameters):
        ...         for parameter in parameters:
        ...             parameter.grad.sign_()
        ...         return GradientStats({})

    """

    log_prefix = "gradient"

    def __init__(
        self,
        exclude: str | Sequence[str] = (),
        min_ndim: int = 0,
        start_step: int = 0,
        stop_step: int | None = None,
        log_stats: LogStats = False,
        enabled: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(min_ndim, int) or min_ndim < 0:
            raise ValueError(f"Expected argument `min_ndim` to be an integer of at least 0, but got {min_ndim!r}.")
        if not isinstance(start_step, int) or start_step < 0:
            raise ValueError(f"Expected argument `start_step` to be an integer of at least 0, but got {start_step!r}.")
        if stop_step is not None and (not isinstance(stop_step, int) or stop_step <= start_step):
            raise ValueError(
                f"Expected argument `stop_step` to be None or an integer larger than `start_step` ({start_step}), but"
                f" got {stop_step!r}. To switch the callback off, use `enabled=False`."
            )
        if log_stats not in (False, "summary", "layers"):
            raise ValueError(
                f"Expected argument `log_stats` to be False, 'summary' or 'layers', but got {log_stats!r}."
            )
        self.exclude = (exclude,) if isinstance(exclude, str) else tuple(exclude)
        self.min_ndim = min_ndim
        self.start_step = start_step
        self.stop_step = stop_step
        self.log_stats = log_stats
        self.enabled = enabled
        self._names: ParameterNames | None = None
        self._last_step: tuple[int, int] | None = None
        self._has_transformed = False
        self._batches_before = 0

    @abstractmethod
    def transform(self, parameters: Sequence[Tensor]) -> GradientStats:
        """Edit the ``.grad`` of each parameter in place.

        Args:
            parameters: The parameters to transform in this step, each once, each with a dense real gradient.

        Returns:
            The statistics of the gradients before the edit, for ``log_stats``, in the order of the parameters.

        """

    def should_transform(self, step: int, epoch: int) -> bool:
        """Say whether the transform runs in an optimizer step; override it for another schedule.

        Args:
            step: Number of optimizer steps taken before this one (``trainer.global_step``).
            epoch: Number of epochs completed before this one (``trainer.current_epoch``).

        Returns:
            By default ``start_step <= step < stop_step``.

        Example::

            >>> from lightning_znorm import ZNorm
            >>> [step for step in range(6) if ZNorm(start_step=1, stop_step=4).should_transform(step, epoch=0)]
            [1, 2, 3]

        """
        return step >= self.start_step and (self.stop_step is None or step < self.stop_step)

    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        """Refuse, before anything is trained, what the Trainer's configuration alone shows to be unsupported."""
        if not self.enabled or stage != "fit":
            return
        refuse_unsupported(self, trainer)
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        kind = self._kind()
        twins = [callback for callback in callbacks if isinstance(callback, kind) and callback.enabled]
        if len(twins) > 1:
            raise MisconfigurationException(
                f"The Trainer has {len(twins)} enabled `{kind.__name__}` callbacks, which would transform each"
                " gradient twice. Keep one (or pass `enabled=False` to the others); look in `callbacks=`, in"
                " `configure_callbacks` of the LightningModule and, on the command line, in both `--znorm` and"
                " `--trainer.callbacks`."
            )
        warn_about_clipping(self, trainer)
        if self.log_stats:
            warn_about_missing_logger(self, trainer)

    def on_fit_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Match ``exclude`` against the module's names and check its optimizers and parameters."""
        if not self.enabled:
            return
        refuse_manual_optimization(self, pl_module)
        self._names = ParameterNames(pl_module, self.exclude, owner=type(self).__name__)
        self._last_step = None
        self._has_transformed = False
        refuse_untransformable(self, trainer, pl_module, self._names, self._is_selected)

    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Remember where this ``fit`` begins."""
        self._batches_before = trainer.fit_loop.epoch_loop._batches_that_stepped

    def on_before_optimizer_step(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", optimizer: Optimizer
    ) -> None:
        """Transform the gradients of the optimizer that is about to step."""
        if not self.enabled:
            return
        step = trainer.global_step
        this_step = (id(optimizer), step)
        if self._last_step == this_step:
            refuse_closure_reevaluation(self, optimizer)
        self._last_step = this_step
        if not self.should_transform(step, trainer.current_epoch):
            return
        if self._names is None:
            raise MisconfigurationException(
                f"`{type(self).__name__}` was switched on in the middle of training, past its checks. Construct it with"
                " `enabled=True` and use `start_step`, or override `should_transform`."
            )
        parameters = self._selected_parameters(optimizer)
        for parameter in parameters:
            assert parameter.grad is not None
            require_transformable(parameter.grad, self._names[parameter])
        if not parameters:
            return
        stats = self.transform(parameters)
        self._has_transformed = True
        if self.log_stats:
            log_gradient_stats(trainer, self.log_prefix, self.log_stats, stats, [self._names[p] for p in parameters])

    def on_train_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Warn if batches were trained on and no gradient was transformed."""
        trained = trainer.fit_loop.epoch_loop._batches_that_stepped > self._batches_before
        if self.enabled and trained and not self._has_transformed:
            warn_about_idleness(self, called=self._last_step is not None)

    def teardown(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        """Let go of the module's parameters."""
        self._names = None

    def on_exception(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", exception: BaseException) -> None:
        """Let go of the module's parameters where Lightning calls no ``teardown``."""
        self._names = None

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self._arguments().items())
        return f"{type(self).__name__}({arguments})"

    def _arguments(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def _kind(self) -> "type[GradientTransform]":
        """Return the class right below the base: subclasses of one transform are the same transform."""
        lineage = [cls for cls in type(self).__mro__ if issubclass(cls, GradientTransform)]
        return lineage[-2]

    def _selected_parameters(self, optimizer: Optimizer) -> list[Tensor]:
        once = dict.fromkeys(p for group in optimizer.param_groups for p in group["params"])
        return [p for p in once if p.grad is not None and p.grad.numel() and self._is_selected(p)]

    def _is_selected(self, parameter: Tensor) -> bool:
        assert self._names is not None
        return parameter.ndim >= self.min_ndim and not self._names.is_excluded(parameter)
