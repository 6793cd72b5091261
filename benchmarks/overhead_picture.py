"""The picture of `overhead.json`."""

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

COLORS = {"clip_grad_norm_": "#2a78b8", "znorm_": "#d9480f", "plain loop": "#5f6b7a", "centralize_": "#3a9a52"}
SHOWN = ("clip_grad_norm_", "znorm_", "plain loop")


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw ratios to clipping per network, and how cost grows with bytes and with the number of tensors."""
    kind = "device" if "device" in found["networks"][0]["ratios"] else "wall"
    figure = Figure(figsize=(13, 4.4), layout="constrained")
    bars, bytes_axis, count_axis = figure.subplots(1, 3, width_ratios=(1.5, 1, 1))
    names = [row["name"] for row in found["networks"]]
    for number, way in enumerate(("znorm_", "plain loop")):
        ratios = [row["ratios"][kind][way] for row in found["networks"]]
        heights = [place + 0.4 * (number - 0.5) for place in range(len(names))]
        bars.barh(heights, ratios, height=0.36, color=COLORS[way], label=way)
        for height, ratio in zip(heights, ratios, strict=True):
            bars.annotate(
                f"{ratio:.2f}", (ratio, height), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8
            )
    bars.axvline(1, color=COLORS["clip_grad_norm_"], linewidth=1.5, label="clip_grad_norm_ = 1")
    bars.set_yticks(range(len(names)), names)
    bars.invert_yaxis()
    bars.set_xlabel(f"{kind} time, as a multiple of clip_grad_norm_ (foreach)")
    bars.margins(x=0.12)
    bars.legend(frameon=False, fontsize=9)
    for axis, rows, label in (
        (bytes_axis, found["by_bytes"], "MB of gradients, in 8 tensors"),
        (count_axis, found["by_count"], "tensors of 1,000 elements"),
    ):
        x = [row["elements"] * 4 / 1e6 if rows is found["by_bytes"] else row["tensors"] for row in rows]
        for way in SHOWN:
            axis.plot(
                x,
                [row["milliseconds"][way][kind] for row in rows],
                color=COLORS[way],
                marker="o",
                markersize=4,
                label=way,
            )
        axis.plot(x, [row["copy_ms"] for row in rows], color="black", linestyle=":", label="one read, one write")
        axis.set(xscale="log", yscale="log", xlabel=label, ylabel=f"{kind} time (ms)")
        axis.legend(frameon=False, fontsize=9)
    for axis in (bars, bytes_axis, count_axis):
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    about = found["about"]
    figure.suptitle(f"{about['machine']}, torch {about['torch']}", fontsize=11)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    source = Path(sys.argv[1])
    draw(json.loads(source.read_text()), source.with_suffix(".png"))
