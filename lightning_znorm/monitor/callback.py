"""A callback that records the gradient of each layer, raw and as the optimizer receives it."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch.optim import Optimizer

from lightning_znorm._lightning import Callback, rank_zero_warn
from lightning_znorm.errors import (
    ArgumentValueError,
    describe,
    require_count,
    require_packages,
    require_patterns,
    to_finite_number,
    to_integer,
    with_known_keywords,
)
from lightning_znorm.monitor.picture import check_file, check_picture, draw_gradients
from lightning_znorm.monitor.records import GradientRecord, ThinnedRecords
from lightning_znorm.monitor.watch import GradientWatch, Settings

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from matplotlib.figure import Figure
    from pandas import DataFrame

__all__ = ["GradientMonitor"]


class GradientMonitor(Callback):
    r"""Log statistics of the gradient of each layer, raw and as the optimizer receives it.

    Two moments of a step are compared. The *raw* gradient is that after the last backward of an accumulation, after DDP
    has averaged it and a GradScaler has unscaled it. The *received* gradient is that at the start of the optimizer's
    step, after ``ZNorm`` and all other callbacks, after the module's own ``on_before_optimizer_step`` and after
    clipping, before the optimizer adds its weight decay. For each gradient :math:`g` of :math:`d` elements

    .. math::
        \lVert g \rVert_2, \qquad \mu = \frac{1}{d} \sum_i g_i, \qquad
        \sigma = \sqrt{\frac{1}{d} \sum_i (g_i - \mu)^2}, \qquad \frac{1}{d} \,\bigl|\{i : |g_i| \le z\}\bigr|

    with :math:`z` = ``near_zero``, and :math:`\cos(g_\text{raw}, g_\text{received})`; all in float64, in units of the
    loss (a GradScaler's scale is divided out). Statistics of a gradient with an inf or NaN are NaN.

    The monitor changes nothing. It works with every optimizer and in the Trainers and command lines of
    ``lightning.pytorch`` and ``pytorch_lightning``. It moves itself to the front of the Trainer's callbacks. A
    recorded step costs a copy of the gradients and one transfer to the host per device; other steps cost nothing.

    Note:
        - Only the process of rank 0 records; there is no communication. Sharded (FSDP, tensor parallel), sparse and
          complex gradients are left out with a warning, and so are subclasses of ``Tensor``.
        - A step that a GradScaler skips is not recorded. If ``nonfinite="skip"`` of a transform has removed the
          gradients, the received statistics are NaN.
        - An optimizer that evaluates its closure several times per step (LBFGS) is recorded at the first evaluation.

    Args:
        detail: ``"summary"`` logs ``grad/norm`` (of all parameters together), ``grad/mean_abs`` (mean of the absolute
            means), ``grad/std_min``, ``grad/std_median``, ``grad/std_max`` (over parameters of more than one element),
            ``grad/near_zero`` (share of all elements), the same as ``grad_received/…``, and ``grad/cosine_mean`` and
            ``grad/cosine_min``; with several optimizers, the names contain the index (``grad/optimizer_0/norm``).
            ``"layers"`` logs ``grad/norm/<name>``, ``grad/mean/<name>``, ``grad/std/<name>``,
            ``grad/near_zero/<name>``, the same as ``grad_received/…``, and ``grad/cosine/<name>`` for each parameter.
            :attr:`history` has all statistics in both cases.
        every_n_steps: Interval of the recorded steps; ``None`` for the steps in which the Trainer logs
            (``log_every_n_steps``).
        near_zero: Absolute value up to which an element counts as near zero, in the units of the raw gradient. It is
            the same for the raw and the received gradient, so the share also reflects a change of scale.
        exclude: Shell-style patterns of parameter names to leave out, see :class:`~lightning_znorm.GradientTransform`.
        picture: File for :meth:`plot`, written at the end of the training, even if it is interrupted or fails; relative
            to the Trainer's ``default_root_dir``. If it cannot be written, there is a warning. ``None`` for no file.
        max_records: Largest number of steps per optimizer, at least 2, in :attr:`history` and the picture. When it is
            reached, every second record is dropped, and from then on every second is kept, so that the records cover
            the whole training, always with the first and the newest. Loggers get every recorded step.
        enabled: ``False`` switches the callback off, for configuration files.

    Raises:
        TypeError: If an argument is unknown, or ``exclude`` is anything but strings.
        ValueError: If an argument is out of its range; at the start of ``fit``, if ``picture`` cannot be written.
        ModuleNotFoundError: At the start of ``fit``, if ``picture`` is set and matplotlib is not installed.
        MisconfigurationException: At the start of the training, if a pattern in ``exclude`` matches no parameter.

    Example::

        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_znorm import GradientMonitor, ZNorm
        >>> quiet = dict(barebones=False, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        ...              enable_model_summary=False, accelerator="cpu")
        >>> monitor = GradientMonitor(every_n_steps=1)
        >>> Trainer(max_steps=2, limit_val_batches=0, callbacks=[ZNorm(), monitor], **quiet).fit(BoringModel())
        >>> [(row["step"], row["name"], round(row["received_std"], 4)) for row in monitor.history]
        [(0, 'layer.weight', 1.0), (0, 'layer.bias', 1.0), (1, 'layer.weight', 1.0), (1, 'layer.bias', 1.0)]

    """

    @with_known_keywords
    def __init__(
        self,
        detail: Literal["summary", "layers"] = "summary",
        every_n_steps: int | None = None,
        near_zero: float = 1e-8,
        exclude: str | Sequence[str] = (),
        picture: str | Path | None = None,
        max_records: int = 1000,
        enabled: bool = True,
    ) -> None:
        super().__init__()
        if detail not in ("summary", "layers"):
            raise ArgumentValueError(
                f"Expected argument `detail` to be 'summary' or 'layers', but got {describe(detail)}."
            )
        if every_n_steps is not None and (to_integer(every_n_steps) or 0) < 1:
            raise ArgumentValueError(
                "Expected argument `every_n_steps` to be None or an integer of at least 1, but got"
                f" {describe(every_n_steps)}."
            )
        threshold = to_finite_number(near_zero)
        if threshold is None or threshold < 0:
            raise ArgumentValueError(
                f"Expected argument `near_zero` to be a finite number of at least 0, but got {describe(near_zero)}."
            )
        if picture is not None and (not isinstance(picture, (str, PathLike)) or not Path(picture).name):
            raise ArgumentValueError(
                f"Expected argument `picture` to be None or the path of a file, but got {describe(picture)}."
            )
        self.detail: Literal["summary", "layers"] = detail
        self.every_n_steps = None if every_n_steps is None else to_integer(every_n_steps)
        self.near_zero = threshold
        self.exclude = require_patterns(exclude)
        self.picture = picture
        self.max_records = require_count("max_records", max_records, least=2)
        self.enabled = enabled
        self._watch: GradientWatch | None = None
        self._records: dict[int, ThinnedRecords] = {}

    @property
    def history(self) -> list[dict[str, Any]]:
        """Statistics of the latest training: a row per recorded step and parameter, in the order of the module.

        A long training keeps every second, fourth, … of the recorded steps, see ``max_records``.

        The columns: ``step`` (as in the loggers), ``optimizer`` (its index), ``name``, ``ndim``; ``norm``, ``mean``,
        ``std``, ``near_zero`` of the raw gradient; ``received_norm``, ``received_mean``, ``received_std``,
        ``received_near_zero``; ``cosine`` between the two. Only the training process of rank 0 has it, which with
        ``strategy="ddp_spawn"`` is not that of the caller.
        """
        return [row for record in self._sort_records() for row in record.rows()]

    def to_frame(self) -> "DataFrame":
        """Return :attr:`history` as a ``pandas.DataFrame``.

        Raises:
            ModuleNotFoundError: If pandas is not installed.

        """
        require_packages(f"`{type(self).__name__}.to_frame`", "compare", "pandas")
        from pandas import DataFrame

        return DataFrame(self.history)

    def plot(self, path: str | Path | None = None, min_ndim: int = 2) -> "Figure":
        """Draw the standard deviation of each layer's gradient over the steps, raw and received.

        Args:
            path: File to write, in any format of matplotlib; ``None`` for no file.
            min_ndim: Parameters with fewer dimensions are left out; 2 shows the weights alone.

        Returns:
            A figure with the layers in the order of the module from top to bottom; one panel if the optimizer receives
            the raw gradient, otherwise two with one colour scale.

        Raises:
            ModuleNotFoundError: If matplotlib is not installed.
            ValueError: If no such gradient was recorded.

        """
        figure = draw_gradients(self._sort_records(), min_ndim, owner=type(self).__name__)
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=130)
        return figure

    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        """Move to the front of the Trainer's callbacks, to record gradients before a callback edits them."""
        if not self.enabled or stage != "fit":
            return
        if self.picture is not None:
            check_picture(self.picture, owner=type(self).__name__)
            if trainer.is_global_zero:
                check_file(Path(trainer.default_root_dir) / self.picture)
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        # Lightning is iterating over this list: the callbacks after this one must keep their positions
        position = next((i for i, callback in enumerate(callbacks) if callback is self), None)
        if position is not None:
            callbacks.insert(0, callbacks.pop(position))

    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Watch the optimizers, which exist now."""
        if self.enabled:
            self._close()
            settings = Settings(self.detail, self.every_n_steps, self.near_zero, self.exclude, self.max_records)
            self._watch = GradientWatch(type(self).__name__, settings, trainer, pl_module)
            self._records = self._watch.records

    def on_before_optimizer_step(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", optimizer: Optimizer
    ) -> None:
        """Record the raw gradients of the optimizer that is about to step."""
        if self._watch is not None:
            self._watch.record_raw(optimizer)

    def on_train_batch_end(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Release raw gradients whose step was not made."""
        if self._watch is not None:
            self._watch.discard_raw()

    def on_train_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Write the picture."""
        if self._watch is None or not trainer.is_global_zero:
            return
        if self._records:
            self._write_picture(trainer)
        elif trainer.global_step:
            interval = f"log_every_n_steps={trainer.log_every_n_steps}"  # type: ignore[attr-defined]
            due = interval if self.every_n_steps is None else f"every_n_steps={self.every_n_steps}"
            rank_zero_warn(
                f"`{type(self).__name__}` has recorded nothing: no optimizer made a step with a gradient in a step that"
                f" is due (`{due}`). For short trainings use `every_n_steps=1`."
            )

    def on_exception(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", exception: BaseException) -> None:
        """Write the picture of the records so far, and release the optimizers."""
        if self._watch is not None and self._records and trainer.is_global_zero:
            self._write_picture(trainer)
        self._close()

    def teardown(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        """Release the optimizers."""
        self._close()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the running training in copies, such as those for spawned processes."""
        return {**vars(self), "_watch": None}

    def _sort_records(self) -> list[GradientRecord]:
        records = (record for thinned in self._records.values() for record in thinned)
        return sorted(records, key=lambda record: (record.step, record.optimizer))

    def _write_picture(self, trainer: "pl.Trainer") -> None:
        if self.picture is None:
            return
        try:
            self.plot(Path(trainer.default_root_dir) / self.picture)
        except Exception as error:  # the training, or the exception being raised, matters more
            rank_zero_warn(f"`{type(self).__name__}` could not write `picture={str(self.picture)!r}`: {error}")

    def _close(self) -> None:
        if self._watch is not None:
            self._watch.close()
        self._watch = None
