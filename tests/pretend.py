"""A device of a third party in Python: operations on the memory of the CPU, each of which is recorded.

Tensors of the device have no memory of their own. Views share a storage, as on every device, and the storage says where
on the CPU the elements are. A device is registered once per process, so that tests of it need a process of their own.
"""

import torch
from torch import Tensor
from torch.library import Library
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretend"
# operations that return values to the host, or a tensor whose shape depends on values
WAITING = {
    *("_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "bincount", "repeat_interleave"),
    *("_unique", "_unique2", "unique_dim", "unique_consecutive"),
}

has_float64 = True
operations: list[str] = []  # in the order in which the device was asked for them
waits: list[str] = []  # those that have to wait for it
_memory: dict[int, torch.UntypedStorage] = {}  # by the storage on the device
_META = torch._C.DispatchKeySet(torch._C.DispatchKey.Meta)
_library = Library("_", "IMPL")


class Module:
    """What ``torch.pretend`` is, as ``torch.cuda`` for CUDA."""

    @staticmethod
    def is_available():
        return True

    @staticmethod
    def is_initialized():
        return True

    @staticmethod
    def current_device():
        return 0

    @staticmethod
    def device_count():
        return 1

    @staticmethod
    def manual_seed_all(seed):
        pass

    @staticmethod
    def _is_in_bad_fork():
        return False

    @staticmethod
    def get_amp_supported_dtype():
        return [torch.bfloat16, torch.float16]


def register():
    """Make the device known to PyTorch."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=Module)
    _library.fallback(_run, "PrivateUse1")


def forget_operations():
    operations.clear()
    waits.clear()


def _run(operation, *args, **kwargs):
    name = operation.overloadpacket.__name__
    operations.append(str(operation))
    device = torch.device(NAME, 0)
    own = {}  # the tensors of the device by what they are on the CPU

    def to_cpu(value):
        if isinstance(value, Tensor) and value.device.type == NAME:
            there = _memory[value.untyped_storage()._cdata]
            view = torch.empty(0, dtype=value.dtype).set_(there, value.storage_offset(), value.size(), value.stride())
            own[view] = value
            return view
        return torch.device("cpu") if value == device else value

    def to_device(value):
        if not isinstance(value, Tensor):
            return value
        if value.dtype == torch.float64 and not has_float64:
            raise TypeError(f"{operation}: this device has no float64")
        return own[value] if value in own else _wrap(value, own)

    # numbers that take the place of tensors
    expected = zip(operation._schema.arguments, args, strict=False)
    args = [_as_tensor(given) if isinstance(argument.type, torch.TensorType) else given for argument, given in expected]
    arguments, options = pytree.tree_map(to_cpu, (args, kwargs))
    if name in ("_copy_from", "_copy_from_and_resize"):
        source, target, *_ = arguments
        if target not in own:
            waits.append(name)
        return args[1] if target.copy_(source) is not None else None
    if name in WAITING or (name.startswith("_index_put") and _has_mask(arguments)):
        waits.append(name)
    result = operation(*arguments, **options)
    for here, theirs in own.items():
        if here.shape != theirs.shape:  # an empty tensor that was given for the result
            theirs.data = _wrap(here, {})
    return pytree.tree_map(to_device, result)


def _wrap(result, own):
    """Return a tensor of the device for one on the CPU, of the same storage as that of which it is a view."""
    base = next((theirs for here, theirs in own.items() if _share_memory(here, result)), None)
    if base is None:
        base = torch._C._acc.create_empty_tensor(list(result.shape), result.dtype)
        _memory[base.untyped_storage()._cdata] = result.untyped_storage()
    layout = result.size(), result.stride(), result.storage_offset()
    wrapped = torch.ops.aten.as_strided.default.redispatch(_META, base, *layout)
    return wrapped if result.dtype == base.dtype else wrapped.view(result.dtype)


def _has_mask(arguments):
    return any(index is not None and index.dtype == torch.bool for index in arguments[1])


def _as_tensor(given):
    if isinstance(given, float):
        return torch.tensor(given, dtype=torch.float64)
    return torch.tensor(given) if isinstance(given, int) else given


def _share_memory(one, other):
    return one.untyped_storage()._cdata == other.untyped_storage()._cdata
