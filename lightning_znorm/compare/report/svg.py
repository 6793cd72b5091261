"""SVG with two axes: pictures that stand alone, in a light or a dark theme, and in a page."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator

WIDTH = 480  # of a picture; small enough for its text on a phone
_LIGHT = ("#687385", "#1f6fb2", "#d9480f", "#2f8f4e", "#8250a8", "#a87a00", "#c2185b", "#00808a", "#6d4c41", "#7a7a1a")
_DARK = ("#a9b4c4", "#6cb4ee", "#ff8a5b", "#6fcf8e", "#c39be8", "#e3b94f", "#f57bae", "#53c7d1", "#c5a294", "#cfcf63")
_DASHES = ("", "7 3", "2 3", "8 3 2 3")
_CHARACTER = 6.7  # mean width at the font size of 13
_STYLE = """
svg.znorm{{font:13px system-ui,-apple-system,"Segoe UI",sans-serif}}
svg.znorm{{--ink:#1f2733;--muted:#5b6675;--grid:#e4e8ed;--paper:#fff}} .znorm .paper{{fill:var(--paper)}}
.znorm text{{fill:var(--muted)}} .znorm .ink{{fill:var(--ink)}} .znorm .strong{{fill:var(--ink);font-weight:600}}
.znorm .grid{{stroke:var(--grid)}} .znorm .axis{{stroke:var(--muted)}} .znorm .zone{{fill:var(--grid);opacity:.7}}
.znorm .line{{stroke:var(--c);fill:none;stroke-width:2}} .znorm .thin{{stroke:var(--c);stroke-width:1.2;opacity:.6}}
.znorm .fill{{fill:var(--c)}} .znorm .soft{{fill:var(--c);opacity:.55}} .znorm .band{{fill:var(--c);opacity:.15}}
.znorm .ring{{stroke:var(--c);fill:none;stroke-width:2}} .znorm .mark:hover{{stroke:var(--ink);stroke-width:2}}
{light}
@media screen and (prefers-color-scheme:dark){{svg.znorm{{--ink:#e8ecf1;--muted:#a3adba;--grid:#343b45;--paper:#171b21}}
{dark}}}
"""


def make_classes(labels: Sequence[str], baseline: str) -> dict[str, str]:
    """Return the CSS class of each method, which is its colour in all pictures: grey for the baseline."""
    return {
        label: f"m{number}" for number, label in enumerate([baseline, *(name for name in labels if name != baseline)])
    }


def make_style(count: int) -> str:
    """Return the CSS of pictures of a number of methods."""
    light, dark = (
        "".join(f".m{number}{{--c:{colors[number % len(colors)]}}}" for number in range(count))
        for colors in (_LIGHT, _DARK)
    )
    return _STYLE.format(light=light, dark=dark)


def find_dash(css_class: str) -> str:
    """Return the dashes of a method's line: colours come again after ten."""
    return _DASHES[int(css_class[1:]) // len(_LIGHT) % len(_DASHES)]


def measure(text: str) -> float:
    """Return about how wide a text is."""
    return _CHARACTER * len(text)


def shorten(text: str, width: float) -> str:
    """Return a text that is no wider than that."""
    most = max(2, int(width / _CHARACTER))
    return text if len(text) <= most else f"{text[: most - 1]}…"


@dataclass(frozen=True)
class Scale:
    """Values along an axis.

    Attributes:
        low: The lowest value.
        high: The highest value.
        start: Where the lowest value is.
        end: Where the highest value is.
        is_logarithmic: Whether equal ratios have equal lengths.

    """

    low: float
    high: float
    start: float
    end: float
    is_logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """Return the place of a value, at an end for one beyond it."""
        low, high, value = (math.log10(each) if self.is_logarithmic else each for each in (self.low, self.high, value))
        share = min(max((value - low) / (high - low), 0.0), 1.0)
        return self.start + share * (self.end - self.start)

    def holds(self, value: float) -> bool:
        """Return whether a value is between the ends."""
        return self.low <= value <= self.high

    def list_ticks(self, most: int = 6) -> list[float]:
        """Return round values."""
        if self.is_logarithmic:
            decades = math.log10(self.high / self.low)
            subs = (1.0,) if decades > 3 else (1.0, 3.0) if decades > 1 else (1.0, 2.0, 5.0)
            with np.errstate(over="ignore"):
                values = LogLocator(subs=subs).tick_values(self.low, self.high)
            # a power of ten may be off by a rounding
            ticks = [
                min(max(float(value), self.low), self.high)
                for value in values
                if self.low * (1 - 1e-9) <= value <= self.high * (1 + 1e-9)
            ]
            return ticks[:: math.ceil(len(ticks) / (most + 2))] if ticks else [self.low, self.high]
        places = MaxNLocator(most).tick_values(self.low, self.high)
        return [float(value) for value in places if self.low - 1e-12 <= value <= self.high + 1e-12]


@dataclass
class Drawing:
    """Elements of a picture.

    Attributes:
        height: Height of the picture.
        name: Name that no other picture of a page has.
        elements: The elements so far.

    """

    height: float
    name: str
    elements: list[str] = field(default_factory=list)

    def add(self, tag: str, title: str = "", text: str | None = None, **attributes: Any) -> None:
        """Add an element; ``_`` in names of attributes is ``-``, and ``css`` is ``class``."""
        names = {"css": "class"}
        written = "".join(
            f' {names.get(name, name.replace("_", "-"))}="{_write(value)}"'
            for name, value in attributes.items()
            if value != ""
        )
        content = (f"<title>{escape(title)}</title>" if title else "") + escape(text or "")
        self.elements.append(f"<{tag}{written}>{content}</{tag}>" if content else f"<{tag}{written}/>")

    def write(self, x: float, y: float, text: str, css: str = "", anchor: str = "", **attributes: Any) -> None:
        """Add a text."""
        self.add("text", x=x, y=y, css=css, text_anchor=anchor, text=text, **attributes)

    @contextmanager
    def group(self, css: str = "", clip: Sequence[float] = (), aside: float = 0.0) -> Iterator[None]:
        """Put what is added into a group, cut off at a rectangle (x, y, width, height), or moved to the right."""
        cut = f' transform="translate({_write(aside)})"' if aside else ""
        if clip:
            x, y, width, height = map(_write, clip)
            self.elements.append(
                f'<clipPath id="{self.name}-clip"><rect x="{x}" y="{y}" width="{width}" height="{height}"/></clipPath>'
            )
            cut = f' clip-path="url(#{self.name}-clip)"'
        written = f' class="{css}"' if css else ""
        self.elements.append(f"<g{written}{cut}>")
        yield
        self.elements.append("</g>")

    def render(self, description: str, methods: int) -> str:
        """Return the picture."""
        height = _write(self.height)
        # the reader's theme may not be that of the page around a picture
        paper = f'<rect class="paper" width="{WIDTH}" height="{height}"/>'
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" class="znorm" role="img"'
            f' viewBox="0 0 {WIDTH} {height}">'
            f"<title>{escape(description)}</title><style>{make_style(methods)}</style>{paper}{''.join(self.elements)}</svg>"
        )


def add_arrow(drawing: Drawing, x: float, y: float, direction: str, css: str, title: str) -> None:
    """Add the mark of a value beyond the end of an axis."""
    points = {
        "right": f"{x:.1f},{y - 5:.1f} {x + 8:.1f},{y:.1f} {x:.1f},{y + 5:.1f}",
        "left": f"{x:.1f},{y - 5:.1f} {x - 8:.1f},{y:.1f} {x:.1f},{y + 5:.1f}",
        "up": f"{x - 5:.1f},{y:.1f} {x:.1f},{y - 8:.1f} {x + 5:.1f},{y:.1f}",
        "down": f"{x - 5:.1f},{y:.1f} {x:.1f},{y + 8:.1f} {x + 5:.1f},{y:.1f}",
    }[direction]
    drawing.add("polygon", points=points, css=f"{css} fill mark cut", title=title)


def format_tick(value: float) -> str:
    """Format a tick: ``0.001``, ``1e-05``."""
    text = f"{abs(value):.4g}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    return f"−{text}" if value < 0 else text


def _write(value: Any) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else escape(str(value))
