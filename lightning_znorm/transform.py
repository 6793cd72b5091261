"""The callback that every gradient transform derives from."""

from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer

from lightning_znorm._lightning import Callback, MisconfigurationError, rank_zero_warn
from lightning_znorm.engine.nonfinite import SkipCounts
from lightning_znorm.engine.transform import Transform
from lightning_znorm.hosts.support import refuse_twins
from lightning_znorm.hosts.trainer import Fit
from lightning_znorm.hosts.tuner import Search, join_search

if TYPE_CHECKING:
    import lightning.pytorch as pl

__all__ = ["GradientTransform"]


class GradientTransform(Transform, Callback):
    """Edit the gradients of the optimizer that is about to step: the base of :class:`~lightning_znorm.ZNorm`.

    The transform runs on ``on_before_optimizer_step``: after the last backward of an accumulation and after DDP has
    averaged the gradients, before the Trainer clips them and before the optimizer adds its own weight decay. It sees
    the parameters of that optimizer alone, each once. A subclass implements :meth:`transform`; overriding
    :meth:`should_transform` replaces the schedule.

    Gradients are edited in place. Under DDP they are the same on all ranks when the hook runs, so no communication is
    needed. Where ranks hold parts of gradients (FSDP2, tensor parallelism, FSDP), the transforms of this package treat
    whole gradients, with one all-reduce per step over a few numbers per parameter; a subclass of your own implements
    :meth:`measure_shards` and :meth:`transform_shards` for that, or is refused.

    Supported are one device, DDP, ``ModelParallelStrategy`` and ``FSDPStrategy``, every precision of the Trainer but
    ``transformer-engine`` and quantization, automatic and manual optimization. Everything else is refused before the
    first step. (An optimizer other than LBFGS that evaluates its closure again can only be detected during its first
    step.) Outside a Trainer, see :func:`~lightning_znorm.attach`.

    The learning-rate finder and the batch-size scaler remove the Trainer's callbacks while they search; a transform
    among these callbacks keeps working.

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
            ``"propagate"``: the tensor stays unchanged, and the step is made. ``"skip"``: every ``.grad`` of the
            optimizer is set to ``None`` on all ranks, so that the step does nothing; an enabled GradScaler
            skips such steps itself, and is left to do so. ``"raise"``: an error names the parameter.
            The last two wait for the device in every step in which the transform runs.
        max_skips: Number of consecutive steps that ``nonfinite="skip"`` skips; the next one raises an error. The
            counters are saved in the Trainer's checkpoints.
        log_stats: ``"summary"`` logs a few metrics over all tensors, ``"layers"`` one mean and one standard deviation
            per parameter name, both to the Trainer's loggers in steps in which these are due; ``False`` logs nothing.
            With several optimizers, the names of a summary contain the optimizer's index (``optimizer_0``).
        enabled: ``False`` switches the callback off, for configuration files.

    Raises:
        TypeError: If an argument is unknown, or ``exclude`` is anything but strings.
        ValueError: If an argument is out of its range.
        MisconfigurationError: At the start of ``fit``, if the Trainer's configuration is not supported.

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

    _fit: Fit | None = None
    _search: Search | None = None

    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        """Refuse unsupported configurations of the Trainer."""
        if not self.enabled or stage != "fit":
            return
        self._close()  # a search that failed; Lightning calls no hook then
        refuse_twins(self, trainer)
        self._skip_counts[0] = SkipCounts()
        self._fit = Fit(self, trainer, pl_module, self._skip_counts[0])
        self._search = join_search(self._fit, trainer, pl_module)
        if self.log_stats and not trainer.loggers:
            rank_zero_warn(
                f"`log_stats={self.log_stats!r}` of `{type(self).__name__}` has no effect: the Trainer has no logger."
            )

    def on_fit_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Match ``exclude`` against the module's names and check its optimizers and parameters."""
        if self.enabled and self._fit is not None:
            self._fit.start()

    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Begin to watch the training, now that a checkpoint is restored."""
        if self._fit is not None:
            self._fit.begin()

    def on_before_optimizer_step(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", optimizer: Optimizer
    ) -> None:
        """Transform the gradients of the optimizer that is about to step."""
        if not self.enabled:
            return
        if self._fit is None:
            raise MisconfigurationError(
                f"`{type(self).__name__}` was switched on in the middle of training, without its checks. Create it with"
                " `enabled=True` and use `start_step`, or override `should_transform`."
            )
        self._fit.step(optimizer)

    def on_train_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Warn if there were batches and no gradient was transformed."""
        if self.enabled and self._fit is not None:
            self._fit.end()

    def teardown(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        """Release the module and its optimizers."""
        self._close()

    def on_exception(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", exception: BaseException) -> None:
        """Release the module and its optimizers, as Lightning calls no ``teardown`` after an exception."""
        self._close()

    def on_save_checkpoint(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", checkpoint: dict[str, Any]
    ) -> None:
        """Add the counters of skipped steps to the states of callbacks in the checkpoint."""
        # not in `state_dict`: a Trainer refuses two stateful callbacks of one class, even if only one is enabled
        if self.enabled and self.nonfinite == "skip":
            checkpoint.setdefault("callbacks", {})[self.state_key] = self._skip_counts[0].state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the counters of skipped steps; missing ones are 0."""
        self._skip_counts[0].load_state_dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the running training in copies, such as those for spawned processes."""
        return {**vars(self), "_fit": None, "_search": None}

    def _close(self) -> None:
        if self._fit is not None:
            self._fit.close()
            if self._search is not None:
                self._search.leave(self._fit)
        self._fit = self._search = None
