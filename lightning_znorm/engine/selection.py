"""Names of parameters, and which of an optimizer's are selected."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from operator import is_

from torch import Tensor
from torch.optim import Optimizer

from lightning_znorm._lightning import MisconfigurationError
from lightning_znorm._torch import COMPILED_PREFIX
from lightning_znorm.errors import join_names

Named = Iterable[tuple[str, Tensor]]


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """Return the parameters of all groups of an optimizer, each once."""
    return list(dict.fromkeys(_listed(optimizer)))


def _listed(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


@dataclass(frozen=True)
class Selected:
    """Parameters of an optimizer, as long as it lists the same ones.

    Attributes:
        listed: As the groups list them.
        parameters: All of them, each once.
        selected: Those that are selected.

    """

    listed: list[Tensor]
    parameters: list[Tensor]
    selected: list[Tensor]


class Selection:
    """Selects parameters by ``exclude`` and ``min_ndim``, matched once per change of an optimizer's parameters.

    A tied parameter goes by its first name and is excluded if any of its names matches.

    Args:
        named: Returns the names and parameters of a whole module, whatever the number of its optimizers; a tied
            parameter once for each of its names. Called again when an optimizer has a parameter without a name.
        exclude: :mod:`fnmatch` patterns.
        min_ndim: Fewest dimensions.
        owner: Who selects, for the error.

    Raises:
        MisconfigurationError: If a pattern matches no name.

    """

    def __init__(self, named: Callable[[], Named], exclude: Sequence[str], min_ndim: int, owner: str) -> None:
        self._named, self._exclude, self._min_ndim, self._owner = named, exclude, min_ndim, owner
        self._nameless: dict[Tensor, str] = {}
        self._match()

    def name_of(self, parameter: Tensor) -> str:
        """Return the name of a parameter, or what an error can say about one that has none."""
        return self._names.get(parameter, f"<not in the module, shape {tuple(parameter.shape)}>")

    def is_selected(self, parameter: Tensor) -> bool:
        """Say whether ``exclude`` and ``min_ndim`` leave the parameter in."""
        return parameter not in self._excluded and parameter.ndim >= self._min_ndim

    def of(self, optimizer: Optimizer) -> Selected:
        """Return the parameters of an optimizer; the same object as long as these are the same."""
        listed, known = _listed(optimizer), self._selected.get(id(optimizer))
        if known is not None and len(listed) == len(known.listed) and all(map(is_, listed, known.listed)):
            return known
        parameters = list(dict.fromkeys(listed))
        if not all(parameter in self._names for parameter in parameters):
            self._match()
            # those of no module; no pattern matches them
            self._nameless |= {p: self.name_of(p) for p in parameters if p not in self._names}
            self._names |= self._nameless
        selected = Selected(listed, parameters, [parameter for parameter in parameters if self.is_selected(parameter)])
        self._selected[id(optimizer)] = selected
        return selected

    def _match(self) -> None:
        self._names: dict[Tensor, str] = dict(self._nameless)
        self._excluded: set[Tensor] = set()
        self._selected: dict[int, Selected] = {}
        unmatched = dict.fromkeys(self._exclude)
        for raw_name, parameter in self._named():
            name = raw_name.replace(COMPILED_PREFIX, "")
            self._names.setdefault(parameter, name)
            for pattern in self._exclude:
                if fnmatchcase(name, pattern):
                    self._excluded.add(parameter)
                    unmatched.pop(pattern, None)
        if unmatched:
            raise MisconfigurationError(
                f"Argument `exclude` of `{self._owner}`: the pattern {next(iter(unmatched))!r} matches no parameter."
                " Patterns are shell-style and match whole names, e.g. '*.bias' or 'encoder.*'. The names are:"
                f" {join_names(list(self._names.values()), limit=10)}."
            )
