"""One `fit` of a Trainer, as a GradientMonitor sees it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_znorm._lightning import rank_zero_warn
from lightning_znorm.engine.scaling import scale_given_to_step, scale_in_gradients, scaler_of
from lightning_znorm.engine.selection import ParameterNames, parameters_of
from lightning_znorm.engine.stepping import closure_of, is_nested_step, with_closure
from lightning_znorm.hosts.reporting import hand_over, logged_step
from lightning_znorm.monitor.records import GradientRecord, ParameterInfo, ThinnedRecords, compare_gradients

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from lightning_znorm.monitor.callback import GradientMonitor


@dataclass(frozen=True)
class _Raw:
    parameters: list[Tensor]
    gradients: list[Tensor]
    scale: Tensor | None


class GradientWatch:
    """Looks at gradients twice per step: as they come to the Trainer's callbacks, and as the optimizer gets them.

    Args:
        monitor: The callback at work.
        trainer: A Trainer whose optimizers exist.
        pl_module: The module that it trains.

    Attributes:
        records: What was seen, by the number of the optimizer.

    Raises:
        MisconfigurationException: If a pattern in ``exclude`` matches nothing.

    """

    def __init__(self, monitor: "GradientMonitor", trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        self.records: dict[int, ThinnedRecords] = {}
        self._monitor = monitor
        self._trainer = trainer
        self._pl_module = pl_module
        self._names = self._name_parameters()
        self._optimizers = list(trainer.optimizers)
        self._raw: dict[int, _Raw] = {}
        self._recorded: dict[int, int] = {}
        self._left_out: set[Tensor] = set()
        # gradients are the same on all ranks of DDP, and only one of them writes
        watched = [opt for opt in self._optimizers if isinstance(opt, Optimizer) and trainer.is_global_zero]
        self._watched = {*map(id, watched)}
        self._handles = [optimizer.register_step_pre_hook(self._before_step) for optimizer in watched]

    def close(self) -> None:
        """Let go of the optimizers and of the gradients."""
        for handle in self._handles:
            handle.remove()
        self.forget()

    def forget(self) -> None:
        """Let go of raw gradients whose step was not made, as where a GradScaler skips it."""
        self._raw.clear()

    def see_raw(self, optimizer: Optimizer) -> None:
        """Remember the gradients of the optimizer if its step is to be recorded."""
        if id(optimizer) not in self._watched or not self._is_due():
            return
        if self._recorded.get(id(optimizer)) == self._trainer.global_step:
            return  # a closure that is evaluated again within the step
        parameters = self._readable(optimizer)
        if parameters:
            gradients = [parameter.grad.detach().clone() for parameter in parameters if parameter.grad is not None]
            scale = scale_in_gradients(scaler_of(self._trainer), optimizer)
            self._raw[id(optimizer)] = _Raw(parameters, gradients, scale)

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if is_nested_step(optimizer):
            return None
        closure = closure_of(args, kwargs)
        if closure is None:
            self._see_received(optimizer, kwargs)
            return None

        def watched() -> Any:
            loss = closure()
            self._see_received(optimizer, kwargs)
            return loss

        return with_closure(args, kwargs, watched)

    @torch.no_grad()
    def _see_received(self, optimizer: Optimizer, kwargs: dict[str, Any]) -> None:
        raw = self._raw.pop(id(optimizer), None)
        if raw is None:
            return
        trainer, monitor = self._trainer, self._monitor
        self._recorded[id(optimizer)] = trainer.global_step
        number = next(i for i, known in enumerate(self._optimizers) if known is optimizer)
        values = compare_gradients(
            raw.gradients,
            [parameter.grad for parameter in raw.parameters],
            monitor.near_zero,
            raw.scale,
            scale_given_to_step(optimizer, kwargs),
        )
        info = tuple(ParameterInfo(self._names[p], self._position(p), p.ndim, p.numel()) for p in raw.parameters)
        record = GradientRecord(logged_step(trainer), number, info, values)
        self.records.setdefault(number, ThinnedRecords(monitor.max_records)).add(record)
        hand_over(trainer, record.metrics(monitor.detail, f"/optimizer_{number}" if len(self._optimizers) > 1 else ""))

    def _is_due(self) -> bool:
        every = self._monitor.every_n_steps
        if every is None:
            # the logger connector's own test, so that these figures share the steps of the module's `self.log`
            due: bool = self._trainer._logger_connector.should_update_logs
            return due
        return (logged_step(self._trainer) + 1) % every == 0

    def _readable(self, optimizer: Optimizer) -> list[Tensor]:
        """Return the parameters with a gradient that can be described, in the order of the module."""
        if not self._names.cover(optimizer):
            self._names = self._name_parameters()
            self._names.adopt(optimizer)
        readable, unreadable = [], {}
        for parameter in parameters_of(optimizer):
            if parameter.grad is None or not parameter.grad.numel() or self._names.is_excluded(parameter):
                continue
            obstacle = _obstacle(parameter, parameter.grad)
            if obstacle is None:
                readable.append(parameter)
            elif parameter not in self._left_out:
                unreadable[parameter] = obstacle
        if unreadable:
            self._warn_about(unreadable)
        return sorted(readable, key=self._position)

    def _position(self, parameter: Tensor) -> int:
        return self._positions.get(parameter, len(self._positions))

    def _warn_about(self, unreadable: dict[Tensor, str]) -> None:
        self._left_out.update(unreadable)
        shown = [f"`{self._names[parameter]}` ({obstacle})" for parameter, obstacle in unreadable.items()]
        more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
        rank_zero_warn(
            f"`{type(self._monitor).__name__}` leaves out parameters whose gradient it cannot describe:"
            f" {', '.join(shown[:3])}{more}. Name them in `exclude` to silence this."
        )

    def _name_parameters(self) -> ParameterNames:
        self._positions: dict[Tensor, int] = {parameter: i for i, parameter in enumerate(self._pl_module.parameters())}
        named = self._pl_module.named_parameters(remove_duplicate=False)
        return ParameterNames(named, self._monitor.exclude, owner=type(self._monitor).__name__)


def _obstacle(parameter: Tensor, gradient: Tensor) -> str | None:
    if gradient.layout != torch.strided:
        return "sparse"
    if not gradient.is_floating_point():
        return "complex" if gradient.is_complex() else str(gradient.dtype)
    if type(gradient) not in (Tensor, torch.nn.Parameter):
        return f"a {type(gradient).__name__}"
    return "a shard" if getattr(parameter, "_fsdp_flattened", False) else None
