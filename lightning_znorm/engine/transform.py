"""The interface of a gradient transform: settings, a schedule and arithmetic."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from inspect import isabstract, signature
from typing import Any, Literal

from torch import Tensor

from lightning_znorm.engine.nonfinite import Nonfinite, SkipCounts
from lightning_znorm.errors import (
    ArgumentValueError,
    describe,
    require_count,
    require_patterns,
    to_integer,
    with_known_keywords,
)
from lightning_znorm.functional import GradientStats, RankGroup, ShardedGradients

LogStats = Literal[False, "summary", "layers"]


class Transform(ABC):
    """Settings, schedule and arithmetic of a gradient transform, in a Trainer or attached to an optimizer.

    The arguments are those of :class:`~lightning_znorm.GradientTransform`.

    Attributes:
        log_prefix: First part of the names of logged metrics.
        sets_norm: Whether the norm of the result is independent of that of the gradient, so that clipping it is a
            mistake, of which the Trainer's host warns.
        clips: Whether it clips the gradient, so that clipping it again is a mistake, too.

    """

    log_prefix = "gradient"
    sets_norm = False
    clips = False

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
        self.exclude = require_patterns(exclude)
        self.min_ndim = require_count("min_ndim", min_ndim)
        self.start_step = require_count("start_step", start_step)
        self.stop_step = None if stop_step is None else to_integer(stop_step)
        self.max_skips = require_count("max_skips", max_skips)
        if stop_step is not None and (self.stop_step is None or self.stop_step <= self.start_step):
            raise ArgumentValueError(
                f"Expected argument `stop_step` to be None or an integer larger than `start_step` ({self.start_step}),"
                f" but got {describe(stop_step)}. To switch the callback off, use `enabled=False`."
            )
        if nonfinite not in ("propagate", "skip", "raise"):
            raise ArgumentValueError(
                f"Expected argument `nonfinite` to be 'propagate', 'skip' or 'raise', but got {describe(nonfinite)}."
            )
        if log_stats not in (False, "summary", "layers"):
            raise ArgumentValueError(
                f"Expected argument `log_stats` to be False, 'summary' or 'layers', but got {describe(log_stats)}."
            )
        self.nonfinite = nonfinite
        self.log_stats = log_stats
        self.enabled = enabled
        # one for the latest `fit`, and one for each optimizer that it is attached to
        self._skip_counts = [SkipCounts()]

    @abstractmethod
    def transform(self, parameters: Sequence[Tensor], grad_scale: Tensor | None) -> GradientStats:
        """Edit the ``.grad`` of each parameter in place.

        Args:
            parameters: The parameters to transform in this step, each once, each with a dense real gradient that is
                not empty.
            grad_scale: ``None``, or the scale by which a GradScaler has multiplied the gradients and by which the
                result must be multiplied, too, because a fused optimizer will divide by it.

        Returns:
            The statistics of the gradients before the edit, for ``log_stats``, in the order of the parameters.

        """

    def measure_shards(self, gradients: ShardedGradients) -> dict[RankGroup, Tensor]:
        """Return what the ranks must add up before :meth:`transform_shards`.

        Args:
            gradients: The parts of gradients that this rank holds, of DTensors or under FullyShardedDataParallel.

        Returns:
            A float64 vector for each group of ranks, on its device, whose length follows from the layouts alone.

        """
        raise NotImplementedError

    def transform_shards(
        self, gradients: ShardedGradients, sums: dict[RankGroup, Tensor], grad_scale: Tensor | None
    ) -> GradientStats:
        """Edit the parts in place, as :meth:`transform` edits whole gradients.

        Args:
            gradients: Those of :meth:`measure_shards`.
            sums: Its result, added up over the ranks.
            grad_scale: As for :meth:`transform`.

        Returns:
            The statistics of the whole gradients.

        """
        raise NotImplementedError

    def should_transform(self, step: int, epoch: int) -> bool:
        """Return whether the transform runs in an optimizer step; override it for another schedule.

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
        """Number of optimizer steps that ``nonfinite="skip"`` has skipped: in the latest ``fit``, and when attached."""
        return sum(counts.skipped_steps for counts in self._skip_counts)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self._arguments().items())
        return f"{type(self).__name__}({arguments})"

    def _arguments(self) -> dict[str, Any]:
        """Return the arguments of the constructors that are attributes of the same name."""
        names = dict.fromkeys(name for cls in self._lineage() for name in signature(cls.__init__).parameters)
        return {name: vars(self)[name] for name in names if name in vars(self)}

    @classmethod
    def _lineage(cls) -> "list[type[Transform]]":
        return [base for base in cls.__mro__ if issubclass(base, Transform)]

    @classmethod
    def _handles_shards(cls) -> bool:
        """Return whether the class that implements the transform implements it for shards, too."""
        names = ("transform", "measure_shards", "transform_shards")
        of_whole, *of_shards = (next(i for i, base in enumerate(cls.__mro__) if name in vars(base)) for name in names)
        return max(of_shards) <= of_whole

    def _kind(self) -> "type[Transform]":
        """Return the first concrete class of the hierarchy: subclasses of one transform are the same transform."""
        return [base for base in self._lineage() if not isabstract(base)][-1]
