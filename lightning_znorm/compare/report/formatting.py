"""Names and numbers as sentences and tables have them."""

import math
import re
from collections.abc import Sequence


def clean(text: str) -> str:
    """Return a text on one line and without the quotation marks of code."""
    return " ".join(str(text).split()).replace("`", "'")


def as_code(name: object) -> str:
    """Return a name as code."""
    return f"`{clean(str(name))}`"


def escape(text: str) -> str:
    """Return a text on one line of which Markdown takes nothing for HTML, mathematics, code or the end of a cell."""
    return re.sub(r"([\\|<$`])", r"\\\1", " ".join(text.split()))


def escape_prose(sentence: str) -> str:
    """Escape what is not code."""
    parts = sentence.split("`")
    return "`".join(part if number % 2 else re.sub(r"([\\|<$])", r"\\\1", part) for number, part in enumerate(parts))


def join_names(names: Sequence[str]) -> str:
    """Join names as in a sentence.

    Example::

        >>> join_names(["a"]), join_names(["a", "b", "c"])
        ('a', 'a, b and c')

    """
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def format_count(number: int, noun: str) -> str:
    """Write a number of things.

    Example::

        >>> format_count(1, "run"), format_count(2, "run")
        ('1 run', '2 runs')

    """
    return f"{number} {noun}{'s' * (number != 1)}"


def format_reason(ended: object) -> str:
    """Write why a training ended: of early stopping the callback's name."""
    return re.sub(r"^early stopping \((.+)\)$", r"\1", str(ended))


def align(values: Sequence[float], digits: int = 4) -> list[str]:
    """Write the numbers of a column with equally many decimals, unless their sizes differ too much for that.

    Example::

        >>> align([66, 65.4, math.nan]), align([120.5, 0.001234])
        (['66.0', '65.4', '–'], ['120.5', '0.001234'])

    """
    sizes = [abs(value) for value in values if value and math.isfinite(value)]
    shown = ["–" if math.isnan(value) else f"{value:.{digits}g}" for value in values]
    if not sizes or max(sizes) >= 1000 * min(sizes) or any("e" in text for text in shown):
        return shown
    decimals = max(len(text.partition(".")[2]) for text in shown)
    return [text if text == "–" else f"{value:.{decimals}f}" for text, value in zip(shown, values, strict=True)]
