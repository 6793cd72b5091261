"""One ``fit`` of a Trainer, watched by a GradientMonitor."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_znorm._lightning import batches_that_stepped, is_logging_due, rank_zero_warn
from lightning_znorm._torch import make_hookable
from lightning_znorm.backends.layouts import is_dtensor
from lightning_znorm.engine.numbering import OptimizerIndices
from lightning_znorm.engine.scaling import find_pending_scale, find_pending_scale_in_step
from lightning_znorm.engine.selection import NamedParameters, Selection
from lightning_znorm.engine.sharding import Layouts
from lightning_znorm.engine.stepping import Keywords, StepHooks
from lightning_znorm.functional import ShardedGradients, collect_gradients, find_part
from lightning_znorm.hosts.reporting import log_metrics
from lightning_znorm.hosts.support import scaler_of
from lightning_znorm.monitor.records import GradientRecord, ParameterInfo, ThinnedRecords
from lightning_znorm.monitor.sharded import compare_sharded_gradients, copy_gradients

if TYPE_CHECKING:
    import lightning.pytorch as pl


@dataclass(frozen=True)
class Settings:
    """Arguments of a GradientMonitor, which its docstring explains."""

    detail: Literal["summary", "layers"]
    every_n_steps: int | None
    near_zero: float
    exclude: tuple[str, ...]
    max_records: int


@dataclass(frozen=True)
class _RawGradients:
    gradients: ShardedGradients
    scale: Tensor | None


class GradientWatch:
    """Records gradients twice per step: before the Trainer's callbacks, and when the optimizer receives them.

    The optimizers of the Trainer must exist.

    Attributes:
        records: The records by the index of the optimizer.

    """

    def __init__(self, owner: str, settings: Settings, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        self.records: dict[int, ThinnedRecords] = {}
        self._owner, self._settings = owner, settings
        self._trainer, self._pl_module = trainer, pl_module
        layouts = Layouts(owner, (trainer.strategy.model or pl_module).modules, strict=False)
        self._selection = Selection(self._name_parameters, settings.exclude, 0, owner, layouts)
        self._optimizers = OptimizerIndices()
        self._raw: dict[int, _RawGradients] = {}
        self._recorded_steps: dict[int, int] = {}
        self._unreadable: set[Tensor] = set()
        self._hooks = StepHooks(on_gradients=self._record_received)
        for optimizer in trainer.optimizers:
            self._register(optimizer)

    def close(self) -> None:
        """Release the optimizers and the gradients."""
        self._hooks.remove()
        self.discard_raw()

    def discard_raw(self) -> None:
        """Release raw gradients whose step was not made, for example because a GradScaler skipped it."""
        self._raw.clear()

    def record_raw(self, optimizer: Optimizer) -> None:
        """Copy the gradients of the optimizer if its step is due."""
        self._register(optimizer)
        if optimizer not in self._hooks or not self._is_due():
            return
        index = self._optimizers[optimizer]
        if self._recorded_steps.get(index) == self._trainer.global_step:
            return  # the closure is evaluated again within the step
        parameters, layouts = self._list_readable(optimizer), self._selection.select(optimizer).layouts
        if parameters:
            gradients = collect_gradients(parameters, layouts.get)
            scale = find_pending_scale(scaler_of(self._trainer), optimizer)
            self._raw[index] = _RawGradients(copy_gradients(gradients), scale)

    def _register(self, optimizer: Optimizer) -> None:
        if optimizer in self._optimizers:
            return
        self._optimizers.add(optimizer)
        # only rank 0 records; it needs the others only where ranks hold parts
        has_shards = isinstance(optimizer, Optimizer) and bool(self._selection.select(optimizer).layouts)
        if not isinstance(optimizer, Optimizer) or not (self._trainer.is_global_zero or has_shards):
            return
        if make_hookable(optimizer):
            self._hooks.add([optimizer])
        else:
            rank_zero_warn(
                f"`{self._owner}` does not record the optimizer `{type(optimizer).__name__}`, which calls no hooks in"
                " its step. If a learning-rate scheduler has wrapped its `step`, call"
                " `optimizer.zero_grad()` before creating the scheduler."
            )

    @torch.no_grad()
    def _record_received(self, optimizer: Optimizer, keywords: Keywords) -> None:
        index = self._optimizers[optimizer]
        raw = self._raw.pop(index, None)
        if raw is None:
            return
        trainer, settings = self._trainer, self._settings
        self._recorded_steps[index] = trainer.global_step
        received_scale = find_pending_scale_in_step(optimizer, keywords)
        values = compare_sharded_gradients(raw.gradients, settings.near_zero, raw.scale, received_scale)
        if not trainer.is_global_zero:
            return
        info = tuple(map(self._describe, raw.gradients.parameters))
        record = GradientRecord(batches_that_stepped(trainer), index, info, values)
        self.records.setdefault(index, ThinnedRecords(settings.max_records)).add(record)
        log_metrics(trainer, record.metrics(settings.detail, len(trainer.optimizers)))

    def _describe(self, parameter: Tensor) -> ParameterInfo:
        name, layouts = self._selection.name_of(parameter), self._selection.layouts
        ndim, numel = layouts.find_ndim(parameter, name), layouts.find_numel(parameter, name)
        return ParameterInfo(name, self._position(parameter), ndim, numel)

    def _is_due(self) -> bool:
        interval = self._settings.every_n_steps
        if interval is None:
            return is_logging_due(self._trainer)
        return (batches_that_stepped(self._trainer) + 1) % interval == 0

    def _list_readable(self, optimizer: Optimizer) -> list[Tensor]:
        """Return the parameters whose gradient can be recorded, in the order of the module."""
        readable, unreadable = [], {}
        parameters = self._selection.select(optimizer)
        for parameter in parameters.selected:
            gradient, is_sharded = find_part(parameter), parameter in parameters.layouts
            if not is_sharded and (gradient is None or not gradient.numel()):
                continue
            obstacle = (
                "a shard" if not self._selection.layouts.knows(parameter) else _find_obstacle(parameter, gradient)
            )
            if obstacle is None:
                readable.append(parameter)
            elif parameter not in self._unreadable:
                unreadable[parameter] = obstacle
        if unreadable:
            self._warn_about(unreadable)
        return sorted(readable, key=self._position)

    def _position(self, parameter: Tensor) -> int:
        return self._positions.get(parameter, len(self._positions))

    def _warn_about(self, unreadable: dict[Tensor, str]) -> None:
        self._unreadable.update(unreadable)
        shown = [f"`{self._selection.name_of(parameter)}` ({obstacle})" for parameter, obstacle in unreadable.items()]
        more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
        rank_zero_warn(
            f"`{self._owner}` leaves out parameters whose gradient it cannot record:"
            f" {', '.join(shown[:3])}{more}. Name them in `exclude` to silence this."
        )

    def _name_parameters(self) -> NamedParameters:
        self._positions: dict[Tensor, int] = {parameter: i for i, parameter in enumerate(self._pl_module.parameters())}
        return self._pl_module.named_parameters(remove_duplicate=False)


def _find_obstacle(parameter: Tensor, gradient: Tensor | None) -> str | None:
    if gradient is not None and gradient.layout != torch.strided:
        return "sparse"
    if not parameter.is_floating_point():
        return "complex" if parameter.is_complex() else str(parameter.dtype)
    if gradient is not None and type(gradient) not in (Tensor, torch.nn.Parameter):
        return f"a {type(gradient).__name__}"
    if parameter.grad is not None and is_dtensor(parameter) != is_dtensor(parameter.grad):
        return "not distributed as its parameter is"
    return None
