"""Names of parameters, and the patterns that leave some of them out."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from operator import is_

from torch import Tensor
from torch.optim import Optimizer

from lightning_znorm._lightning import MisconfigurationException

_COMPILED_PREFIX = "_orig_mod."


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """Return the parameters of all groups of an optimizer, each once."""
    return list(dict.fromkeys(_listed(optimizer)))


def _listed(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


@dataclass(frozen=True)
class _Look:
    """What is known of an optimizer as long as it lists the same parameters."""

    listed: list[Tensor]
    is_covered: bool
    included: list[Tensor]


class ParameterNames:
    """Names of parameters, and which of them match one of the ``exclude`` patterns.

    A tied parameter goes by its first name and is excluded if any of its names matches.

    Args:
        named: Name and parameter of a whole module, whatever the number of its optimizers; a tied parameter once for
            each of its names.
        exclude: :mod:`fnmatch` patterns.
        owner: Who excludes, for the error.

    Raises:
        MisconfigurationException: If a pattern matches no name.

    """

    def __init__(self, named: Iterable[tuple[str, Tensor]], exclude: Sequence[str], owner: str) -> None:
        self._names: dict[Tensor, str] = {}
        self._excluded: set[Tensor] = set()
        self._looks: dict[int, _Look] = {}
        unmatched = dict.fromkeys(exclude)
        for raw_name, parameter in named:
            name = raw_name.replace(_COMPILED_PREFIX, "")
            self._names.setdefault(parameter, name)
            for pattern in exclude:
                if fnmatchcase(name, pattern):
                    self._excluded.add(parameter)
                    unmatched.pop(pattern, None)
        if unmatched:
            names = list(self._names.values())
            shown = ", ".join(names[:10]) + (f", … ({len(names)} in all)" if len(names) > 10 else "")
            raise MisconfigurationException(
                f"Argument `exclude` of `{owner}`: the pattern {next(iter(unmatched))!r} matches no parameter. Patterns"
                f" are shell-style and match whole names, e.g. '*.bias' or 'encoder.*'. The names are: {shown}."
            )

    def __getitem__(self, parameter: Tensor) -> str:
        return self._names.get(parameter, f"<not in the module, shape {tuple(parameter.shape)}>")

    def cover(self, optimizer: Optimizer) -> bool:
        """Say whether all parameters of the optimizer are known."""
        return self._look_at(optimizer).is_covered

    def included(self, optimizer: Optimizer) -> list[Tensor]:
        """Return the parameters of the optimizer that no pattern matches, each once."""
        return self._look_at(optimizer).included

    def adopt(self, optimizer: Optimizer) -> None:
        """Make parameters known that are in the optimizer and have no name; no pattern matches them."""
        for parameter in parameters_of(optimizer):
            self._names.setdefault(parameter, self[parameter])
        self._looks.clear()

    def is_excluded(self, parameter: Tensor) -> bool:
        """Say whether any name of the parameter matches a pattern."""
        return parameter in self._excluded

    def _look_at(self, optimizer: Optimizer) -> _Look:
        listed, look = _listed(optimizer), self._looks.get(id(optimizer))
        if look is None or len(listed) != len(look.listed) or not all(map(is_, listed, look.listed)):
            parameters = list(dict.fromkeys(listed))
            is_covered = all(parameter in self._names for parameter in parameters)
            look = _Look(listed, is_covered, [p for p in parameters if not self.is_excluded(p)])
            self._looks[id(optimizer)] = look
        return look
