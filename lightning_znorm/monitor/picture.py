"""The picture of a GradientMonitor: the standard deviation of the gradient as a colour, by layer and step."""

import math
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_znorm.errors import ArgumentValueError, require_packages
from lightning_znorm.monitor.records import GradientRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS, _EMPTY = "magma", "0.8"
_MAX_LABEL_LENGTH = 34
_MAX_LABELS = 40
_MAX_DECADES = 16.0


def check_picture(path: str | PathLike[str], owner: str) -> None:
    """Raise if matplotlib is not installed, or does not support the format of the suffix."""
    require_packages(f"The picture of `{owner}`", "compare", "matplotlib")
    from matplotlib.figure import Figure

    formats = sorted(Figure().canvas.get_supported_filetypes())
    suffix = Path(path).suffix[1:].lower()
    if suffix and suffix not in formats:
        raise ArgumentValueError(
            f"Expected argument `picture` to end in one of {', '.join(formats)}, but got {str(path)!r}."
        )


def check_file(path: Path) -> None:
    """Raise ``ValueError`` if the file cannot be written; leave no new file or folder behind."""
    new_folders: list[Path] = []
    try:
        new_folders += [folder for folder in path.parents if not folder.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.open("xb").close()
        except FileExistsError:
            path.open("ab").close()
        else:
            path.unlink()
    except OSError as error:
        raise ArgumentValueError(
            f"Argument `picture`: {str(path)!r} cannot be written ({error}). Name a file in a folder that you may write"
            " to, by an absolute path or relative to the Trainer's `default_root_dir`."
        ) from None
    finally:
        for folder in new_folders:
            with suppress(OSError):
                folder.rmdir()


def draw_gradients(records: Sequence[GradientRecord], min_ndim: int, owner: str) -> "Figure":
    """Draw the standard deviations of raw and received gradients, as :meth:`.GradientMonitor.plot` documents."""
    require_packages(f"The picture of `{owner}`", "compare", "matplotlib")
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

    names, steps, raw, received = _tabulate(records, min_ndim)
    if not names:
        raise ArgumentValueError(
            f"`{owner}` has recorded no gradient of a parameter with {min_ndim} or more dimensions."
        )
    panels = {"raw, after the backward pass": raw}
    if not torch.allclose(raw, received, rtol=1e-3, atol=0, equal_nan=True):
        panels["received by the optimizer"] = received

    height = min(max(3.4, 1.6 + 0.21 * len(names)), 9.0)
    figure = Figure(figsize=(3.8 + 3.4 * len(panels), height), layout="constrained")
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    norm = _make_scale([*panels.values()])
    for axis, (title, values) in zip(axes, panels.items(), strict=True):
        _draw_panel(axis, steps, values, norm)
        axis.set_title(title, fontsize=10.5, fontweight="bold", pad=20)
        position = {"xy": (0.5, 1), "xycoords": "axes fraction", "xytext": (0, 5), "textcoords": "offset points"}
        axis.annotate(_describe_spread(values), **position, ha="center", va="bottom", fontsize=9)
        axis.set_xlabel("training step")
    interval = math.ceil(len(names) / _MAX_LABELS)
    axes[0].set_yticks(range(0, len(names), interval), _shorten_names(names)[::interval], fontsize=7.5)
    for axis in axes[1:]:
        axis.tick_params(left=False)
    axes[0].set_ylabel("layer, from the input (top) to the output (bottom)")
    bar = figure.colorbar(
        ScalarMappable(norm, _COLORS), ax=list(axes), label="standard deviation of the layer's gradient", pad=0.02
    )
    bar.ax.tick_params(labelsize=8)
    if any((~(values > 0)).any() for values in panels.values()):
        bar.ax.set_xlabel("grey: 0, not\nfinite or none", fontsize=7.5)
    figure.suptitle("How the size of the gradient varies with depth", fontsize=12)
    return figure


def _tabulate(records: Sequence[GradientRecord], min_ndim: int) -> tuple[list[str], list[int], Tensor, Tensor]:
    """Return names, steps and two tables of standard deviations, layers by steps, NaN where there is none."""
    positions = {p.name: p.position for record in records for p in record.parameters if p.ndim >= min_ndim}
    names = sorted(positions, key=lambda name: positions[name])
    steps = sorted({record.step for record in records})
    row, column = ({key: i for i, key in enumerate(keys)} for keys in (names, steps))
    tables = torch.full((2, len(names), len(steps)), torch.nan, dtype=torch.float64, device="cpu")
    for record in records:
        indices = [i for i, parameter in enumerate(record.parameters) if parameter.name in row]
        rows = [row[record.parameters[i].name] for i in indices]
        tables[:, rows, column[record.step]] = record.values[[2, 6]][:, indices]
    return names, steps, tables[0], tables[1]


def _make_scale(tables: Sequence[Tensor]) -> Any:
    from matplotlib.colors import LogNorm

    values = torch.cat([table[(table > 0) & table.isfinite()] for table in tables])
    if not len(values):
        return LogNorm(0.1, 1)
    low, high = values.min().item(), values.max().item()
    # at least one decade, so that noise does not look like structure
    middle = math.sqrt(low) * math.sqrt(high)
    low, high = min(low, middle / math.sqrt(10)), max(high, middle * math.sqrt(10))
    return LogNorm(max(low, high * 10**-_MAX_DECADES), high)


def _draw_panel(axis: "Axes", steps: Sequence[int], values: Tensor, norm: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    # zeros, inf and NaN are masked; values below the scale have its lowest colour
    colored = torch.where((values > 0) & values.isfinite(), values, torch.nan)
    edges = [step - 0.5 * gap for step, gap in zip(steps, _compute_gaps(steps), strict=True)]
    edges.append(steps[-1] + 0.5 * _compute_gaps(steps)[-1])
    axis.set_facecolor(_EMPTY)
    rows = [i - 0.5 for i in range(len(colored) + 1)]
    axis.pcolormesh(edges, rows, colored.numpy(), norm=norm, cmap=_COLORS, rasterized=True)
    axis.set_ylim(len(colored) - 0.5, -0.5)
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axis.tick_params(labelsize=8)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _compute_gaps(steps: Sequence[int]) -> list[int]:
    """Return the distance of each step to the one before it."""
    gaps = [after - before for before, after in pairwise(steps)]
    return [gaps[0], *gaps] if gaps else [1]


def _describe_spread(values: Tensor) -> str:
    """Return the ratio of the largest to the smallest layer, in the first and in the last step, as text."""
    usable = (values > 0) & values.isfinite()
    largest = torch.where(usable, values, 0).amax(dim=0)
    smallest = torch.where(usable, values, torch.inf).amin(dim=0)
    ratios = (largest / smallest)[usable.any(dim=0)]
    if not len(ratios):
        return "no gradient that is finite and not 0"
    if ratios.median() < 1.05:
        return "all layers alike"
    first, last = _format_ratio(ratios[0].item()), _format_ratio(ratios[-1].item())
    return f"largest : smallest = {first} at first, {last} at last"


def _format_ratio(ratio: float) -> str:
    return f"{float(f'{ratio:.2g}'):g}" if ratio < 1000 else f"$10^{{{math.log10(ratio):.1f}}}$"


def _shorten_names(names: Sequence[str]) -> list[str]:
    """Return the names without a common ``.weight``, and without the middle of long ones."""
    suffix = ".weight" if all(name.endswith(".weight") for name in names) else ""
    half = _MAX_LABEL_LENGTH // 2
    short = [name.removesuffix(suffix) for name in names]
    return [name if len(name) <= _MAX_LABEL_LENGTH else f"{name[: half - 1]}…{name[-half:]}" for name in short]
