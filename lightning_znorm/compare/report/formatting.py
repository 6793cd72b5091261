"""Names and numbers in sentences and tables."""

import math
import re
from collections.abc import Sequence


def clean(text: str) -> str:
    """Return a text on one line and without backticks."""
    return " ".join(str(text).split()).replace("`", "'")


def as_code(name: object) -> str:
    """Return a name as code."""
    return f"`{clean(str(name))}`"


def escape(text: str) -> str:
    """Return a text on one line in which Markdown finds no HTML, mathematics, code or end of a cell."""
    return re.sub(r"([\\|<$`])", r"\\\1", " ".join(text.split()))


def escape_prose(sentence: str) -> str:
    """Escape the parts of a sentence that are not code."""
    parts = sentence.split("`")
    return "`".join(part if number % 2 else re.sub(r"([\\|<$])", r"\\\1", part) for number, part in enumerate(parts))


def enumerate_names(names: Sequence[str]) -> str:
    """Join names in a sentence.

    Example::

        >>> enumerate_names(["a"]), enumerate_names(["a", "b", "c"])
        ('a', 'a, b and c')

    """
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def format_count(number: int, noun: str) -> str:
    """Format a number with its noun.

    Example::

        >>> format_count(1, "run"), format_count(2, "run")
        ('1 run', '2 runs')

    """
    return f"{number} {noun}{'s' * (number != 1)}"


def format_reason(ended: object) -> str:
    """Format the reason why a training ended: for early stopping, the name of the callback."""
    return re.sub(r"^early stopping \((.+)\)$", r"\1", str(ended))


def align(values: Sequence[float], digits: int = 4) -> list[str]:
    """Format the numbers of a column with the same number of decimals, unless their sizes differ too much.

    Example::

        >>> align([66, 65.4, math.nan]), align([120.5, 0.001234])
        (['66.0', '65.4', '–'], ['120.5', '0.001234'])

    """
    sizes = [abs(value) for value in values if value and math.isfinite(value)]
    texts = ["–" if math.isnan(value) else f"{value:.{digits}g}" for value in values]
    if not sizes or max(sizes) >= 1000 * min(sizes) or any("e" in text for text in texts):
        return texts
    decimals = max(len(text.partition(".")[2]) for text in texts)
    return [text if text == "–" else f"{value:.{decimals}f}" for text, value in zip(texts, values, strict=True)]
