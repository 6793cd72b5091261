"""Names of parameters, and the selection among those of an optimizer."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from operator import is_

from torch import Tensor
from torch.optim import Optimizer

from lightning_znorm._lightning import MisconfigurationError
from lightning_znorm._torch import WRAPPER_PREFIXES
from lightning_znorm.backends.layouts import Layout
from lightning_znorm.engine.sharding import Layouts
from lightning_znorm.errors import join_names

NamedParameters = Iterable[tuple[str, Tensor]]


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """Return the parameters of all groups of an optimizer, each once."""
    return list(dict.fromkeys(_list_parameters(optimizer)))


def _list_parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


@dataclass(frozen=True)
class OptimizerParameters:
    """Parameters of an optimizer, valid until its parameter groups change.

    Attributes:
        listed: The parameters in the order of the groups.
        unique: The same, each once.
        selected: The selected ones.
        layouts: Layouts of those of the selected ones of which ranks hold parts.

    """

    listed: list[Tensor]
    unique: list[Tensor]
    selected: list[Tensor]
    layouts: dict[Tensor, Layout]


class Selection:
    """Selects parameters by ``exclude`` and ``min_ndim``, again only when the parameters of an optimizer change.

    A tied parameter has its first name, and is excluded if any of its names matches.

    Args:
        name_parameters: Returns the names and parameters of a whole module, also of one with several optimizers; a
            tied parameter once for each of its names. Called again when an optimizer has a parameter without a name.
        exclude: :mod:`fnmatch` patterns.
        min_ndim: Smallest number of dimensions.
        owner: Name of the callback, for the error.
        layouts: Finds the layouts and the shapes of whole parameters.

    Raises:
        MisconfigurationError: If a pattern matches no name.

    """

    def __init__(
        self,
        name_parameters: Callable[[], NamedParameters],
        exclude: Sequence[str],
        min_ndim: int,
        owner: str,
        layouts: Layouts | None = None,
    ) -> None:
        self._name_parameters, self._owner = name_parameters, owner
        self.layouts = Layouts(owner) if layouts is None else layouts
        self._exclude, self._min_ndim = exclude, min_ndim
        self._nameless: dict[Tensor, str] = {}
        self._match_patterns()

    def name_of(self, parameter: Tensor) -> str:
        """Return the name of a parameter, or a description of one without a name."""
        known = self._names.get(parameter)
        return f"<not in the module, shape {tuple(parameter.shape)}>" if known is None else known

    def is_selected(self, parameter: Tensor) -> bool:
        """Return whether ``exclude`` and ``min_ndim`` select the parameter."""
        if parameter in self._excluded:
            return False
        return not self._min_ndim or self.layouts.find_ndim(parameter, self.name_of(parameter)) >= self._min_ndim

    def find_layout(self, parameter: Tensor) -> Layout | None:
        """Return the layout of a parameter, see :meth:`.Layouts.find`."""
        return self.layouts.find(parameter, self.name_of(parameter))

    def select(self, optimizer: Optimizer) -> OptimizerParameters:
        """Return the parameters of an optimizer; the same object until they change."""
        listed, cached = _list_parameters(optimizer), self._selected.get(id(optimizer))
        if cached is not None and len(listed) == len(cached.listed) and all(map(is_, listed, cached.listed)):
            return cached
        unique = list(dict.fromkeys(listed))
        if not all(parameter in self._names for parameter in unique):
            self._match_patterns()
            # parameters outside the module, which no pattern matches
            self._nameless |= {p: self.name_of(p) for p in unique if p not in self._names}
            self._names |= self._nameless
        selected = list(filter(self.is_selected, unique))
        found = ((parameter, self.find_layout(parameter)) for parameter in selected)
        layouts = {parameter: layout for parameter, layout in found if layout is not None}
        parameters = OptimizerParameters(listed, unique, selected, layouts)
        self._selected[id(optimizer)] = parameters
        return parameters

    def _match_patterns(self) -> None:
        self._names: dict[Tensor, str] = dict(self._nameless)
        self._excluded: set[Tensor] = set()
        self._selected: dict[int, OptimizerParameters] = {}
        unmatched = dict.fromkeys(self._exclude)
        for raw_name, parameter in self._name_parameters():
            name = raw_name
            for prefix in WRAPPER_PREFIXES:
                name = name.replace(prefix, "")
            self._names.setdefault(parameter, name)
            for pattern in self._exclude:
                if fnmatchcase(name, pattern):
                    self._excluded.add(parameter)
                    unmatched.pop(pattern, None)
        if unmatched:
            raise MisconfigurationError(
                f"Argument `exclude` of `{self._owner}`: the pattern {next(iter(unmatched))!r} matches no parameter."
                " Patterns are shell-style and match whole names, such as '*.bias' or 'encoder.*'. The names are:"
                f" {join_names(list(self._names.values()), limit=10)}."
            )
