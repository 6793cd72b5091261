"""Gradient transforms outside Lightning's Trainer: in plain PyTorch, Fabric, accelerate and transformers."""

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_znorm._lightning import MisconfigurationException, rank_zero_warn
from lightning_znorm.engine.checks import (
    refuse_attached,
    refuse_capture,
    refuse_closure_reevaluation,
    refuse_optimizers,
    refuse_parameters,
    refuse_unsupported,
)
from lightning_znorm.engine.nonfinite import NonfinitePolicy
from lightning_znorm.engine.pipeline import apply_transform, is_selected
from lightning_znorm.engine.scaling import scale_given_to_step, scaler_skips_step
from lightning_znorm.engine.selection import ParameterNames, parameters_of
from lightning_znorm.engine.stepping import closure_of, is_nested_step, with_closure
from lightning_znorm.errors import describe
from lightning_znorm.functional import GradientStats
from lightning_znorm.hosts.warnings import warn_about_skip
from lightning_znorm.transform import GradientTransform

__all__ = ["AttachedTransform", "attach"]

# by name, so that none of these packages is imported
_LIGHTNING_WRAPPERS = {
    "lightning.fabric.wrappers._FabricOptimizer",
    "lightning_fabric.wrappers._FabricOptimizer",
    "lightning.pytorch.core.optimizer.LightningOptimizer",
    "pytorch_lightning.core.optimizer.LightningOptimizer",
}
_ACCELERATE_WRAPPER = "accelerate.optimizer.AcceleratedOptimizer"


def attach(optimizer: Optimizer, transform: GradientTransform, module: nn.Module | None = None) -> "AttachedTransform":
    """Make an optimizer transform its gradients at the start of every step, without a Trainer.

    The transform runs inside ``optimizer.step()``: after whatever the loop does before (clipping included), after
    ``GradScaler.step`` or Fabric have unscaled the gradients, and before the optimizer's own weight decay. For
    optimizers that unscale in their kernel (``fused=True``) the result is scaled accordingly. A closure given to
    ``step`` is evaluated first.

    One transform may be attached to several optimizers; each counts its own steps. With Fabric and accelerate, attach
    after ``fabric.setup`` and ``accelerator.prepare``, so that the strategy and the precision can be checked.

    Args:
        optimizer: The optimizer, as it is or as Fabric or accelerate has wrapped it; in a callback of
            ``transformers.Trainer``, the one that ``on_train_begin`` is given.
        transform: What to attach, such as ``ZNorm()``. Its ``start_step`` and ``stop_step`` count this optimizer's
            steps. ``nonfinite="skip"`` and ``"raise"`` decide together with the other ranks where
            ``torch.distributed`` is initialized, so that all ranks must step this optimizer together.
        module: The whole module, for the names that ``exclude`` and errors use. Not needed if the optimizer was made
            with ``model.named_parameters()``, or without ``exclude``.

    Returns:
        A handle, whose ``remove()`` undoes it.

    Raises:
        TypeError: If an argument is of the wrong type, or ``exclude`` is set and there are no names.
        MisconfigurationException: If the optimizer, a parameter, the strategy or precision of Fabric or accelerate is
            not supported, a pattern in ``exclude`` matches no name, or the same transform is attached already.

    Example::

        >>> import torch
        >>> from lightning_znorm import ZNorm, attach
        >>> model = torch.nn.Linear(4, 3)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        >>> handle = attach(optimizer, ZNorm(min_ndim=2))
        >>> model(torch.eye(4)).square().sum().backward()
        >>> optimizer.step()
        >>> model.weight.grad.std(correction=0).round(decimals=4), handle.step
        (tensor(1.), 1)
        >>> handle.remove()

    """
    if not isinstance(transform, GradientTransform):
        raise _wrong_type("transform", "a transform such as `ZNorm()`", transform)
    optimizer = _unwrap_optimizer(optimizer, transform)
    if not isinstance(optimizer, Optimizer):
        raise _wrong_type("optimizer", "a `torch.optim.Optimizer`", optimizer)
    if module is not None and not isinstance(module, nn.Module):
        raise _wrong_type("module", "a `torch.nn.Module`", module)
    is_complete = hasattr(optimizer, "param_groups") and hasattr(optimizer, "_optimizer_step_pre_hooks")
    if transform.enabled and not is_complete:
        raise TypeError(
            f"Nothing can be attached to the optimizer `{type(optimizer).__name__}`, which does not call"
            " `Optimizer.__init__`. If it wraps another optimizer, attach to that one."
        )
    return AttachedTransform(optimizer, transform, module)


class AttachedTransform:
    """A transform at work on one optimizer; made by :func:`attach`.

    Also a context manager that removes it on exit.

    Attributes:
        transform: The transform.
        step: Number of steps that the optimizer has made with it.
        epoch: What :meth:`~lightning_znorm.GradientTransform.should_transform` is given as the epoch; to be set by the
            loop if a schedule of its own needs it.
        stats: Statistics of the last step's raw gradients, ``None`` if none was transformed in it.

    """

    def __init__(self, optimizer: Optimizer, transform: GradientTransform, module: nn.Module | None) -> None:
        self.transform = transform
        self.step = 0
        self.epoch = 0
        self.stats: GradientStats | None = None
        self._nonfinite_policy = NonfinitePolicy(transform)
        self._module = None if module is None else _unwrap(module)
        self._handle: RemovableHandle | None = None
        if not transform.enabled:
            return
        self._names = self._name_parameters(optimizer)
        refuse_optimizers(transform, [optimizer])
        refuse_attached(transform, [optimizer])
        modules = [] if self._module is None else self._module.modules()
        refuse_parameters(transform, modules, parameters_of(optimizer), self._names, self._is_selected)
        if transform.log_stats:
            rank_zero_warn(
                f"`log_stats={transform.log_stats!r}` of `{type(transform).__name__}` has no effect outside a Trainer:"
                " read `stats` of the handle that `attach` returns."
            )
        self._handle = optimizer.register_step_pre_hook(self)

    @property
    def skipped_steps(self) -> int:
        """Number of steps that ``nonfinite="skip"`` has skipped."""
        return self._nonfinite_policy.skipped_steps

    def remove(self) -> None:
        """Give the optimizer its plain steps back; doing it twice does no harm."""
        if self._handle is not None:
            self._handle.remove()

    def state_dict(self) -> dict[str, Any]:
        """Return the counters, to be kept in a checkpoint beside the optimizer's state."""
        return {"step": self.step, "epoch": self.epoch, **self._nonfinite_policy.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the counters; those that are missing are 0."""
        self.step, self.epoch = state_dict.get("step", 0), state_dict.get("epoch", 0)
        self._nonfinite_policy.load_state_dict(state_dict)

    def __call__(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Transform the gradients, or wrap the closure that will make them: the hook that PyTorch calls."""
        if not self.transform.enabled or is_nested_step(optimizer):
            return None
        closure = closure_of(args, kwargs)
        if closure is None:
            self._apply(optimizer, kwargs)
            return None
        return with_closure(args, kwargs, self._transform_after(closure, optimizer, kwargs))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()

    def _transform_after(
        self, closure: Callable[[], Any], optimizer: Optimizer, kwargs: dict[str, Any]
    ) -> Callable[[], Any]:
        evaluations = 0

        def transformed() -> Any:
            nonlocal evaluations
            evaluations += 1
            if evaluations > 1:
                refuse_closure_reevaluation(self.transform, optimizer)
            loss = closure()
            self._apply(optimizer, kwargs)
            return loss

        return transformed

    def _apply(self, optimizer: Optimizer, kwargs: dict[str, Any]) -> None:
        step, self.step, self.stats = self.step, self.step + 1, None
        if not self.transform.should_transform(step, self.epoch):
            return
        refuse_capture(self.transform)
        if not self._names.cover(optimizer):
            self._names = self._name_parameters(optimizer)
        distributed = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        skipped = self._nonfinite_policy.skips(
            optimizer,
            number=0,
            names=self._names,
            scaler_skips=scaler_skips_step(optimizer, kwargs),
            distributed=distributed,
        )
        if skipped is not None:
            if self.skipped_steps == 1:
                warn_about_skip(self.transform, skipped, step)
            return
        applied = apply_transform(self.transform, optimizer, self._names, scale_given_to_step(optimizer, kwargs))
        if applied is not None:
            self.stats = applied[1]

    def _name_parameters(self, optimizer: Optimizer) -> ParameterNames:
        exclude, owner = self.transform.exclude, type(self.transform).__name__
        if self._module is not None:
            names = ParameterNames(self._module.named_parameters(remove_duplicate=False), exclude, owner)
            names.adopt(optimizer)
            return names
        if exclude and not all("param_names" in group for group in optimizer.param_groups):
            raise TypeError(
                f"Argument `exclude` of `{owner}` needs the names of the parameters, which the optimizer does not know."
                " Pass `module=` to `attach`, or make the optimizer with `model.named_parameters()`."
            )
        return ParameterNames(_named_by_optimizer(optimizer), exclude, owner)

    def _is_selected(self, parameter: Tensor) -> bool:
        return is_selected(self.transform, self._names, parameter)


def _named_by_optimizer(optimizer: Optimizer) -> Iterator[tuple[str, Tensor]]:
    for i, group in enumerate(optimizer.param_groups):
        numbers = (f"param_groups[{i}]['params'][{j}]" for j in range(len(group["params"])))
        yield from zip(group.get("param_names", numbers), group["params"], strict=False)


def _wrong_type(argument: str, expected: str, value: object) -> TypeError:
    remedy = "The order is `attach(optimizer, transform, module)`."
    if isinstance(value, type) and issubclass(value, GradientTransform):
        remedy = f"Make one: `{value.__name__}()`."
    return TypeError(f"Expected argument `{argument}` to be {expected}, but got {describe(value)}. {remedy}")


def _unwrap_optimizer(optimizer: Any, transform: GradientTransform) -> Any:
    """Return the optimizer inside the wrappers of Lightning and accelerate, if the transform can work there."""
    names = {f"{cls.__module__}.{cls.__qualname__}" for cls in type(optimizer).__mro__}
    if names & _LIGHTNING_WRAPPERS:
        strategy = optimizer._strategy
        if transform.enabled and strategy is not None:
            precision = getattr(strategy, "precision", None) or strategy.precision_plugin
            refuse_unsupported(transform, strategy, precision)
        return _unwrap_optimizer(optimizer._optimizer, transform)
    if _ACCELERATE_WRAPPER in names:
        if transform.enabled:
            _refuse_accelerate(transform, optimizer.accelerator_state)
        return _unwrap_optimizer(optimizer.optimizer, transform)
    return optimizer


def _refuse_accelerate(transform: GradientTransform, state: Any) -> None:
    """Raise if what accelerate does to the gradients is not supported."""
    kind = state.distributed_type.value
    if kind != "NO" and not kind.startswith("MULTI_"):  # data parallelism is MULTI_GPU, MULTI_CPU, …
        raise MisconfigurationException(
            f"`{type(transform).__name__}` does not support accelerate's `DistributedType.{kind}` yet: a parameter's"
            " gradient may be sharded or kept elsewhere there. Use one device or data parallelism (DDP), or leave the"
            " transform out (`enabled=False`)."
        )
    if state.mixed_precision not in ("no", "fp16", "bf16"):
        raise MisconfigurationException(
            f"`{type(transform).__name__}` does not support accelerate's `mixed_precision={state.mixed_precision!r}`"
            " yet. Use 'no', 'fp16' or 'bf16', or leave the transform out (`enabled=False`)."
        )


def _unwrap(module: nn.Module) -> nn.Module:
    """Return the module without the wrappers of torch.compile, Fabric and data parallelism, which prefix its names."""
    is_parallel = isinstance(module, (DistributedDataParallel, nn.DataParallel))
    for attribute in ("_orig_mod", "_original_module", "module"):
        if attribute in module._modules and (attribute != "module" or is_parallel):
            inner: nn.Module = getattr(module, attribute)
            return _unwrap(inner)
    return module
