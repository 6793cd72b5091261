"""The callback that every gradient transform derives from."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import isabstract, signature
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor
from torch.optim import Optimizer

from lightning_znorm._lightning import Callback, MisconfigurationException
from lightning_znorm.engine.checks import refuse_twins, refuse_unsupported
from lightning_znorm.engine.nonfinite import Nonfinite, NonfinitePolicy
from lightning_znorm.errors import count, describe, integer, patterns, with_known_keywords
from lightning_znorm.functional import GradientStats
from lightning_znorm.hosts.trainer import Fit
from lightning_znorm.hosts.tuner import Binding, has_tuner_callback, is_bound
from lightning_znorm.hosts.warnings import warn_about_idleness, warn_about_missing_logger

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

    Gradients are edited in place. Under DDP they are the same on all ranks when the hook runs, so that no communication
    is needed.

    Supported are one device and DDP, every precision of the Trainer but ``transformer-engine`` and quantization,
    automatic and manual optimization. Everything else raises an error before the first step, except that optimizers
    other than LBFGS which evaluate their closure again are found out in their first step. Outside a Trainer, see
    :func:`~lightning_znorm.attach`.

    The learning-rate finder and the batch-size scaler take the Trainer's callbacks away while they search. A transform
    among these callbacks goes on working, through the module's own hook; one that is not is made to by
    :meth:`bound_to`.

    Args:
        exclude: Shell-style patterns (:mod:`fnmatch`) of parameter names, as in ``model.named_parameters()`` without
            the ``_orig_mod.`` that ``torch.compile`` adds; matching parameters keep their gradient. A single string is
            one pattern.
        min_ndim: Parameters with fewer dimensions keep their gradient. 2 leaves out biases and the weights and biases
            of normalization layers.
        start_step: First optimizer step (counted from 0, as ``trainer.global_step``, which counts the steps of all
            optimizers) in which the transform runs.
        stop_step: First optimizer step in which it no longer runs, ``None`` for never.
        nonfinite: What to do in a step in which a gradient of the optimizer, excluded ones included, has an inf or NaN.
            ``"propagate"``: the tensor is left as it is, and the step is made. ``"skip"``: every ``.grad`` of the
            optimizer is set to ``None`` on all ranks together, so that the step does nothing; under an enabled
            GradScaler, which skips such steps itself, that is left to it. ``"raise"``: an error names the parameter.
            The last two wait for the device in every step in which the transform runs.
        max_skips: Number of steps in a row that ``nonfinite="skip"`` skips; the next one raises an error. The
            counters are kept in the Trainer's checkpoints.
        log_stats: ``"summary"`` logs a few figures over all tensors, ``"layers"`` one mean and one standard deviation
            per parameter name, both to the Trainer's loggers in steps in which these are due; ``False`` logs nothing.
            With several optimizers the summary of each has its number in its name (``optimizer_0``).
        enabled: ``False`` makes the callback do nothing at all, for configuration files.

    Raises:
        TypeError: If an argument is unknown, or ``exclude`` is anything but strings.
        ValueError: If an argument is out of its range.
        MisconfigurationException: At the start of ``fit``, if the Trainer's configuration is not supported.

    Example::

        >>> import torch
        >>> from lightning_znorm import GradientStats, GradientTransform
        >>> class Sign(GradientTransform):
        ...     def transform(self, parameters, grad_scale):
        ...         for parameter in parameters:
        ...             parameter.grad.sign_()
        ...             if grad_scale is not None:
        ...                 parameter.grad.mul_(grad_scale)
        ...         return GradientStats({})

    """

    log_prefix = "gradient"

    @with_known_keywords
    def __init__(
        self,
        exclude: str | Sequence[str] = (),
        min_ndim: int = 0,
        start_step: int = 0,
        stop_step: int | None = None,
        nonfinite: Nonfinite = "propagate",
        max_skips: int = 10,
        log_stats: LogStats = False,
        enabled: bool = True,
    ) -> None:
        super().__init__()
        self.exclude = patterns(exclude)
        self.min_ndim = count("min_ndim", min_ndim)
        self.start_step = count("start_step", start_step)
        self.stop_step = None if stop_step is None else integer(stop_step)
        self.max_skips = count("max_skips", max_skips)
        if stop_step is not None and (self.stop_step is None or self.stop_step <= self.start_step):
            raise ValueError(
                f"Expected argument `stop_step` to be None or an integer larger than `start_step` ({self.start_step}),"
                f" but got {describe(stop_step)}. To switch the callback off, use `enabled=False`."
            )
        if nonfinite not in ("propagate", "skip", "raise"):
            raise ValueError(
                f"Expected argument `nonfinite` to be 'propagate', 'skip' or 'raise', but got {describe(nonfinite)}."
            )
        if log_stats not in (False, "summary", "layers"):
            raise ValueError(
                f"Expected argument `log_stats` to be False, 'summary' or 'layers', but got {describe(log_stats)}."
            )
        self.nonfinite = nonfinite
        self.log_stats = log_stats
        self.enabled = enabled
        self._nonfinite_policy = NonfinitePolicy(self)
        self._fit: Fit | None = None
        self._binding: Binding | None = None

    @abstractmethod
    def transform(self, parameters: Sequence[Tensor], grad_scale: Tensor | None) -> GradientStats:
        """Edit the ``.grad`` of each parameter in place.

        Args:
            parameters: The parameters to transform in this step, each once, each with a dense real gradient.
            grad_scale: ``None``, or the scale by which a GradScaler has multiplied the gradients and by which the
                result must be multiplied, too, because the optimizer will divide by it (a fused one).

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

    @property
    def skipped_steps(self) -> int:
        """Number of optimizer steps that ``nonfinite="skip"`` has skipped in this training."""
        return self._nonfinite_policy.skipped_steps

    @contextmanager
    def bound_to(self, pl_module: "pl.LightningModule") -> Iterator["GradientTransform"]:
        """Apply the transform in every training of a module, whatever the Trainer's callbacks.

        This is for Lightning's ``Tuner``, which takes the callbacks away while it searches, when the transform is not
        among them. Inside the ``with`` block the module's own ``on_before_optimizer_step`` is wrapped; on exit it is
        restored (not in copies that were made of the module inside the block). While the Trainer has the same
        transform among its callbacks, the bound one does nothing.

        Args:
            pl_module: The LightningModule that is trained.

        Yields:
            The transform itself.

        Raises:
            TypeError: If the argument is not a LightningModule.
            MisconfigurationException: If the same transform is bound to the module already.

        Example::

            >>> from lightning.pytorch.demos.boring_classes import BoringModel
            >>> from lightning_znorm import ZNorm
            >>> model = BoringModel()
            >>> with ZNorm().bound_to(model):
            ...     pass  # Tuner(trainer).lr_find(model)

        """
        binding = Binding(self, pl_module)
        try:
            yield self
        finally:
            binding.release()
            self._close()

    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        """Refuse, before anything is trained, what the Trainer's configuration alone shows to be unsupported."""
        if not self.enabled or stage != "fit":
            return
        self._nonfinite_policy = NonfinitePolicy(self)
        refuse_unsupported(self, trainer.strategy, trainer.strategy.precision_plugin)
        refuse_twins(self, trainer)
        warn_about_missing_logger(self, trainer)
        if has_tuner_callback(trainer) and not is_bound(self, pl_module):
            self._binding = Binding(self, pl_module, trainer)

    def on_fit_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Match ``exclude`` against the module's names and check its optimizers and parameters."""
        if self.enabled:
            self._open(trainer, pl_module)

    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Remember where this ``fit`` begins, now that a checkpoint is restored."""
        if self._fit is not None:
            self._fit.batches_before = trainer.fit_loop.epoch_loop._batches_that_stepped

    def on_before_optimizer_step(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", optimizer: Optimizer
    ) -> None:
        """Transform the gradients of the optimizer that is about to step."""
        if not self.enabled:
            return
        if self._fit is None:
            raise MisconfigurationException(
                f"`{type(self).__name__}` was switched on in the middle of training, past its checks. Construct it with"
                " `enabled=True` and use `start_step`, or override `should_transform`."
            )
        self._fit.apply(optimizer)

    def on_train_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Warn if batches were trained on and no gradient was transformed."""
        if self.enabled and self._fit is not None:
            trained = trainer.fit_loop.epoch_loop._batches_that_stepped > self._fit.batches_before
            if trained and not self._fit.has_transformed:
                warn_about_idleness(self, called=self._fit.was_called)

    def teardown(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        """Let go of the module and its optimizers."""
        self._close()

    def on_exception(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", exception: BaseException) -> None:
        """Let go of the module and its optimizers where Lightning calls no ``teardown``."""
        self._close()

    def on_save_checkpoint(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", checkpoint: dict[str, Any]
    ) -> None:
        """Add the counters of skipped steps to the checkpoint, where the Trainer keeps its callbacks' states."""
        # not by `state_dict`: a Trainer takes only one stateful callback of a type, also where others are not enabled
        if self.enabled and self.nonfinite == "skip":
            checkpoint.setdefault("callbacks", {})[self.state_key] = self._nonfinite_policy.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the counters of skipped steps; what another version did not store is 0."""
        self._nonfinite_policy.load_state_dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the running training behind in copies, such as those that go to spawned processes."""
        return {**vars(self), "_fit": None, "_binding": None}

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self._arguments().items())
        return f"{type(self).__name__}({arguments})"

    def _arguments(self) -> dict[str, Any]:
        names = dict.fromkeys(name for cls in self._lineage() for name in signature(cls.__init__).parameters)
        return {name: vars(self)[name] for name in names if name in vars(self)}

    @classmethod
    def _lineage(cls) -> "list[type[GradientTransform]]":
        return [base for base in cls.__mro__ if issubclass(base, GradientTransform)]

    def _kind(self) -> "type[GradientTransform]":
        """Return the highest class that is complete: subclasses of one transform are the same transform."""
        return [base for base in self._lineage() if not isabstract(base)][-1]

    def _apply_bound(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", optimizer: Optimizer, counts_anew: bool
    ) -> None:
        """Transform the gradients in a training that did not call ``setup`` and ``on_fit_start``."""
        if self._fit is None or not self._fit.is_of(trainer):
            refuse_unsupported(self, trainer.strategy, trainer.strategy.precision_plugin)
            if counts_anew:
                self._nonfinite_policy = NonfinitePolicy(self)
            self._open(trainer, pl_module)
        assert self._fit is not None
        self._fit.apply(optimizer)

    def _open(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        self._close_fit()
        self._fit = Fit(self, trainer, pl_module)

    def _close_fit(self) -> None:
        if self._fit is not None:
            self._fit.close()
        self._fit = None

    def _close(self) -> None:
        self._close_fit()
        if self._binding is not None:
            self._binding.release()
        self._binding = None
