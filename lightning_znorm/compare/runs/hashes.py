"""Hashes of what methods should share: initial weights, batches, random numbers."""

import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parameter import is_lazy

from lightning_znorm.compare.identity.values import identify


def hash_weights(module: nn.Module) -> str:
    """Hash all weights and buffers, of sharded ones the part of this rank."""
    digest = hashlib.sha256()
    for name, value in _find_weights(module):
        digest.update(name.encode())
        if isinstance(value, Tensor):
            _hash_tensor(get_local_part(value), digest)
    return digest.hexdigest()


def get_local_part(tensor: Tensor) -> Tensor:
    """Return the part of a DTensor that this rank has, and any other tensor unchanged."""
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor


def _find_weights(module: nn.Module) -> Iterable[tuple[str, Any]]:
    """Return the weights and buffers of a module by name."""
    if any(type(part).__name__ == "FullyShardedDataParallel" for part in module.modules()):
        # the hooks on their `state_dict` take a part for the whole before the first step
        return chain(module.named_parameters(), module.named_buffers())
    return module.state_dict().items()


def hash_batch(batch: Any, digest: Any) -> None:
    """Hash the tensors of a batch, or its value if it contains none."""
    tensors = list(_find_tensors(batch))
    for tensor in tensors:
        _hash_tensor(tensor, digest)
    if not tensors:
        digest.update(identify(batch).encode())


def _find_tensors(batch: Any) -> Iterator[Tensor]:
    """Yield the tensors of a nested collection in order."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from _find_tensors(value)
    elif isinstance(batch, (list, tuple)):
        for value in batch:
            yield from _find_tensors(value)
    elif is_dataclass(batch) and not isinstance(batch, type):
        for field in fields(batch):
            yield from _find_tensors(getattr(batch, field.name, None))


def _hash_tensor(tensor: Tensor, digest: Any) -> None:
    digest.update(f"{tensor.dtype}{tensor.layout}".encode())
    if tensor.layout is torch.strided and not is_lazy(tensor):  # others have no bytes to hash
        digest.update(f"{tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy())


def hash_random_states(device: torch.device) -> str:
    """Hash the states of the generators of Python, NumPy and PyTorch."""
    _, keys, *rest = np.random.get_state()
    digest = hashlib.sha256(repr((random.getstate(), rest)).encode())
    digest.update(np.asarray(keys).tobytes())
    digest.update(torch.get_rng_state().numpy().tobytes())
    if device.type == "cuda":
        digest.update(torch.cuda.get_rng_state(device).numpy().tobytes())
    return digest.hexdigest()
