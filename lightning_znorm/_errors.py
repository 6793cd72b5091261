"""Names in error messages."""

from collections.abc import Sequence
from difflib import get_close_matches


def listing(names: Sequence[str], limit: int = 20) -> str:
    """Join names for an error message."""
    shown = ", ".join(names[:limit])
    return shown + (f", … ({len(names)} in all)" if len(names) > limit else "") if names else "none at all"


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Return a hint at the nearest of the known names, or nothing."""
    near = get_close_matches(name, known, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
