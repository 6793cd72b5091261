"""The layouts of sharded parameters, and the exchange of sums, with which the verdict on inf and NaN travels."""

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_znorm._lightning import MisconfigurationError
from lightning_znorm._torch import FlatShard, find_flat_shard, is_flattened
from lightning_znorm.backends.layouts import (
    Fragment,
    Layout,
    RankGroup,
    find_dtensor_layout,
    find_fragment_layout,
    is_dtensor,
)
from lightning_znorm.engine.groups import Ranks
from lightning_znorm.engine.nonfinite import flag_nonfinite
from lightning_znorm.functional.sharded import add_up, find_part


def _list_nothing() -> Iterable[nn.Module]:
    return ()


class Layouts:
    """Finds how ranks hold the parameters of a training: DTensors, and what FullyShardedDataParallel has flattened.

    Args:
        owner: Name of the transform, for errors.
        list_modules: Returns all modules, those of FullyShardedDataParallel included.
        strict: Whether an unknown part of a flat parameter is an error; if not, it counts as whole.

    """

    def __init__(
        self, owner: str, list_modules: Callable[[], Iterable[nn.Module]] = _list_nothing, strict: bool = True
    ) -> None:
        self._owner, self._list_modules, self._strict = owner, list_modules, strict
        self._fragments: dict[Tensor, tuple[Layout | None, torch.Size]] = {}

    def find(self, parameter: Tensor, name: str) -> Layout | None:
        """Return the layout of a parameter, ``None`` if each rank holds the whole, or this rank is outside its mesh.

        Args:
            parameter: The parameter.
            name: Its name, for the error.

        Raises:
            MisconfigurationError: If it is a part of a flat parameter, it is unknown which, and this is an error.

        """
        if is_dtensor(parameter):
            return find_dtensor_layout(parameter)
        return self._find_fragment(parameter, name)[0] if is_flattened(parameter) else None

    def knows(self, parameter: Tensor) -> bool:
        """Return whether it is known which part of a parameter each rank holds."""
        return not is_flattened(parameter) or parameter in self._list_fragments(parameter)

    def find_ndim(self, parameter: Tensor, name: str) -> int:
        """Return the number of dimensions of the whole parameter."""
        return len(self._find_fragment(parameter, name)[1]) if is_flattened(parameter) else parameter.ndim

    def find_numel(self, parameter: Tensor, name: str) -> int:
        """Return the number of elements of the whole parameter."""
        return self._find_fragment(parameter, name)[1].numel() if is_flattened(parameter) else parameter.numel()

    def _find_fragment(self, parameter: Tensor, name: str) -> tuple[Layout | None, torch.Size]:
        fragments = self._list_fragments(parameter)
        if parameter in fragments:
            return fragments[parameter]
        if not self._strict:
            return None, parameter.shape
        raise MisconfigurationError(
            f"`{self._owner}` does not know which part of the parameter `{name}` this rank holds:"
            " FullyShardedDataParallel tells it with `use_orig_params=True` alone, of parameters that are contiguous,"
            " and to callbacks of a Trainer. Use `FSDPStrategy` with its default and `.contiguous()`, or `fully_shard`"
            f" (FSDP2), or leave the parameter out with `exclude=[{name!r}]`."
        )

    def _list_fragments(self, parameter: Tensor) -> dict[Tensor, tuple[Layout | None, torch.Size]]:
        """Return what is known, after another search if it is not about this parameter."""
        if parameter not in self._fragments:
            for module in self._list_modules():
                shard = find_flat_shard(module)
                if shard is not None:
                    self._fragments |= _read_shard(shard)
        return self._fragments


def _read_shard(shard: FlatShard) -> dict[Tensor, tuple[Layout | None, torch.Size]]:
    """Return the layouts and the shapes of the parameters in a flat one."""
    if not shard.size:
        return {parameter: (None, shape) for parameter, shape, *_ in shard.parts}
    ranks = tuple(dist.get_process_group_ranks(shard.process_group))
    everyone = tuple(range(dist.get_world_size()))
    # with the ranks that hold copies, so that all of them get the same bits
    all_ranks = everyone if len(ranks) * shard.copies == len(everyone) else ranks
    handle = shard.process_group if all_ranks == ranks and all_ranks != everyone else dist.group.WORLD
    group = RankGroup(tuple(sorted(all_ranks)), shard.device.type, shard.device, (handle,))
    layouts: dict[Tensor, tuple[Layout | None, torch.Size]] = {}
    for parameter, shape, start, length, offset in shard.parts:
        fragment = Fragment(shape, start, length, offset)
        layout = find_fragment_layout(group, fragment, ranks.index(dist.get_rank()), len(ranks), shard.size)
        layouts[parameter] = layout, shape
    return layouts


def add_up_with_verdict(sums: dict[RankGroup, Tensor], parameters: Sequence[Tensor], ranks: Ranks) -> Tensor | None:
    """Add the sums up over the ranks, and return the first parameter with an inf or NaN in a gradient on any rank.

    The verdict travels with the sums of a group of all ranks, if there is one.

    Args:
        sums: A vector for each group of ranks, replaced by its sum.
        parameters: All parameters to look at, in the same order on every rank.
        ranks: All ranks, which must call this together.

    """
    flags = flag_nonfinite([find_part(parameter) for parameter in parameters])
    carrier = next((group for group in sums if group.has_all_ranks()), None)
    if carrier is not None:
        length = len(sums[carrier])
        sums[carrier] = torch.cat([sums[carrier], flags.to(sums[carrier])])
    add_up(sums)
    if carrier is not None:
        sums[carrier], flags = sums[carrier].split([length, len(parameters)])
    found = flags.nonzero().flatten().tolist()
    position = found[0] if found else len(parameters)
    if carrier is None:
        devices = {group.device for group in sums} or {parameter.device for parameter in parameters}
        position = ranks.reduce_min(position, devices)
    return None if position == len(parameters) else parameters[position]
