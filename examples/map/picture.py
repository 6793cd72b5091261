"""The picture of the map: where ZNorm leads, and by how much.

python -m examples.map.picture
"""

import argparse
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from examples.map.analysis import OTHERS, analyze
from examples.map.data import FOLDER, PLACE, read_confirmation
from examples.map.run import DEPTHS, NETWORKS, OPTIMIZERS

PICTURE = Path("docs/images/map.png")
NETWORK_NAMES = {
    "default": "plain, PyTorch's init",
    "plain": "plain, He init",
    "layernorm": "LayerNorm",
    "batchnorm": "BatchNorm",
    "residual": "residual",
    "residual-layernorm": "residual, LayerNorm",
}
OPTIMIZER_NAMES = {"sgd": "SGD, momentum", "adam": "Adam", "adam-eps": "Adam, eps 1e-30"}
REACH = 80.0  # points at which the colors end
LINEAR = 1.0  # points up to which the scale of colors is linear
GREY = "#d9dce1"
MISSING = "not run"
PANELS = (  # title, method, and those that it is compared with
    ("Lead of ZNorm over no transform, in points", "znorm", ("none",)),
    ("Lead of ZNorm over the best of none, clip, gc and scale, in points", "znorm", OTHERS),
    ("Lead of ZNorm of the weights alone over ZNorm of all parameters, in points", "znorm(min_ndim=2)", ("znorm",)),
)
PLACES = [(depth, optimizer) for optimizer in OPTIMIZERS for depth in sorted(DEPTHS)]


def draw(confirmation: pd.DataFrame, path: Path) -> None:
    """Draw the accuracy without a transform, and the lead of ZNorm over that and over the best of the others."""
    run = {*confirmation[["depth", "optimizer"]].itertuples(index=False, name=None)}
    places = [place for place in PLACES if place in run]
    figure = Figure(figsize=(3.0 + 0.7 * max(len(places), 6), 12.2), layout="constrained")
    first, *panels = figure.subplots(4, 1, sharex=True)
    accuracy = confirmation.groupby(PLACE)["none"].mean().mul(100)
    _draw_panel(first, places, {place: (x, f"{x:.0f}", False) for place, x in accuracy.items()}, "Greens", None)
    first.set_title("Accuracy without a transform, in %", loc="left", fontsize=11)
    for axis, (name, method, others) in zip(panels, PANELS, strict=True):
        table = analyze(confirmation, method, others)
        leads = zip(table["lead"].tolist(), table["answer"].tolist(), strict=True)
        texts = [(100 * lead, show(lead, answer), answer in ("better", "worse")) for lead, answer in leads]
        cells = dict(zip(table[PLACE].itertuples(index=False, name=None), texts, strict=True))
        _draw_panel(axis, places, cells, "RdBu", SymLogNorm(LINEAR, vmin=-REACH, vmax=REACH))
        axis.set_title(name, loc="left", fontsize=11)
    panels[-1].set_xticks(range(len(places)), [f"{depth} layers" for depth, _ in places], fontsize=8.5)
    for optimizer in OPTIMIZERS:
        own = [number for number, place in enumerate(places) if place[1] == optimizer]
        if own:
            center = (own[0] + own[-1]) / 2
            first.text(center, -1.55, OPTIMIZER_NAMES[optimizer], ha="center", fontsize=10.5, weight="bold")
    figure.supxlabel(
        "blue: ahead; red: behind; framed: certainly, at 5% over the map; =: within one point; grey: no method learns",
        fontsize=9,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def show(lead: float, answer: str) -> str:
    """Return the text of a cell.

    >>> show(-0.0123, "worse"), show(0.2, "better"), show(0.001, "equivalent"), show(0.0, "nothing")
    ('−1.2', '+20', '+0.1 =', '')

    """
    if answer == "nothing":
        return ""
    points = 100 * lead
    text = f"{points:+.1f}" if abs(points) < 9.95 else f"{points:+.0f}"
    return f"{text}{' =' if answer == 'equivalent' else ''}".replace("-", "−")


def _draw_panel(
    axis: Axes,
    places: list[tuple[int, str]],
    cells: dict[Any, tuple[float, str, bool]],
    colors: str,
    norm: SymLogNorm | None,
) -> None:
    networks = list(NETWORKS)
    values = np.full((len(networks), len(places)), np.nan)
    for (row, network), (column, (depth, optimizer)) in product(enumerate(networks), enumerate(places)):
        value, text, _ = cells.get((network, depth, optimizer), (np.nan, MISSING, False))
        values[row, column] = value if text else np.nan
        if text == MISSING:
            axis.text(column, row, text, ha="center", va="center", fontsize=8, color="#7a8290")
    palette = matplotlib.colormaps[colors].with_extremes(bad=GREY)
    limits: dict[str, Any] = {"norm": norm} if norm is not None else {"vmin": 0, "vmax": 140}
    axis.imshow(values, cmap=palette, aspect="auto", **limits)
    for (network, depth, optimizer), (value, text, is_certain) in cells.items():
        row, column = networks.index(network), places.index((depth, optimizer))
        dark = norm is not None and abs(float(norm(value)) - 0.5) > 0.36
        axis.text(column, row, text, ha="center", va="center", fontsize=9, color="white" if dark else "#1d2430")
        if is_certain:
            axis.add_patch(
                Rectangle((column - 0.46, row - 0.44), 0.92, 0.88, fill=False, edgecolor="#1d2430", lw=1.3, zorder=3)
            )
    axis.set_yticks(range(len(networks)), [NETWORK_NAMES[network] for network in networks], fontsize=9)
    for column, (before, after) in enumerate(pairwise(places)):
        if before[1] != after[1]:
            axis.axvline(column + 0.5, color="white", linewidth=5)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def main() -> None:
    """Read the tables, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=FOLDER, help="folder of the tables (%(default)s)")
    parser.add_argument("--out", type=Path, default=PICTURE, help="picture (%(default)s)")
    options = parser.parse_args()
    draw(read_confirmation(options.data), options.out)
    print(f"See {options.out}")


if __name__ == "__main__":
    main()
