"""One error for every argument that is chosen by name."""

from collections.abc import Iterable
from difflib import get_close_matches


def unknown_choice(argument: str, value: object, choices: Iterable[str]) -> ValueError:
    """Build the error for a name that is not among the choices, with the nearest ones first.

    Example::

        >>> str(unknown_choice("optimizer", "Adma", ["SGD", "Adam"]))
        "Expected argument `optimizer` to be one of ['Adam', 'SGD'], but got 'Adma'. Did you mean 'Adam'?"

    """
    names = sorted(choices)
    lowered = {name.lower(): name for name in names}
    near = [lowered[match] for match in get_close_matches(str(value).lower(), lowered, n=3)]
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return ValueError(f"Expected argument `{argument}` to be one of {names}, but got {value!r}.{hint}")
