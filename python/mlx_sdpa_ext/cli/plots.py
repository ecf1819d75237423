"""The picture of a demo: prefill time and peak memory against context, stock and ours."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .prefill import Point
from .report import Report

# Told apart without colour too: by marker and by the label at the end of the line.
STYLES = {
    "stock": {"color": "#c2571a", "marker": "s", "label": "stock MLX"},
    "ours": {"color": "#1f5fbf", "marker": "o", "label": "mlx-sdpa-ext"},
    "rest": {"color": "#8a8a8a", "marker": "", "ls": ":", "label": "all but the attention"},
}


def plot(report: Report, path: Path, title: str, subtitle: str) -> None:
    """Writes the picture of the points measured so far to `path` (PNG)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.8), layout="constrained")
    runs = {kind: run.points for kind, run in report.runs.items() if run.points}
    floor = {kind: runs[kind] for kind in ("rest",) if kind in runs}
    lines = {kind: runs[kind] for kind in ("stock", "ours") if kind in runs}

    def seconds(point: Point) -> float:
        return point.seconds

    def peak(point: Point) -> float:
        return point.peak_bytes / 2**20

    panels = (
        (axes[0], "Prefill time (s)", seconds, lines | floor),
        (axes[1], "Peak memory above the weights (MiB)", peak, lines),
    )
    for axis, name, value, drawn in panels:
        for kind, points in drawn.items():
            xs, ys = [p.context for p in points], [value(p) for p in points]
            axis.plot(xs, ys, lw=2 if kind in lines else 1.2, ms=5, **STYLES[kind])
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(list(report.contexts), [_thousands(c) for c in report.contexts])
        axis.set_xticks([], minor=True)
        axis.set_xlim(report.contexts[0] / 1.25, report.contexts[-1] * 1.25)
        low, high = axis.get_ylim()
        subs = (1, 2, 5) if high / low > 10 else (1, 1.5, 2, 3, 4, 5, 7)
        axis.yaxis.set_major_locator(LogLocator(subs=subs))
        axis.yaxis.set_major_formatter(lambda y, _: f"{y:,.4g}")
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel("Context (tokens)")
        axis.set_title(name, loc="left", fontsize=11)
        axis.grid(which="major", color="#e3e3e3", lw=0.8)
        axis.spines[["top", "right"]].set_visible(False)
        _mark_gain(axis, lines, value, "faster" if value is seconds else "less")
    axes[0].legend(frameon=False, loc="lower right")
    figure.suptitle(f"{title}\n", x=0.01, ha="left", fontsize=12, fontweight="bold")
    figure.text(0.01, 0.925, subtitle, ha="left", va="center", fontsize=9, color="#555555")
    part = path.with_name(path.name + ".part")
    figure.savefig(part, dpi=150, format="png")
    plt.close(figure)
    os.replace(part, path)


def _mark_gain(
    axis: Any, lines: dict[str, list[Point]], value: Callable[[Point], float], word: str
) -> None:
    """Draws the ratio between the two lines at the longest context that both reached."""
    ours = {point.context: point for point in lines.get("ours", [])}
    both = [point for point in lines.get("stock", []) if point.context in ours]
    if not both:
        return
    x = both[-1].context
    top, bottom = value(both[-1]), value(ours[x])
    if bottom <= 0 or top / bottom < 1.05:
        return
    arrow = {"arrowstyle": "->", "color": "#444444", "shrinkA": 5, "shrinkB": 5}
    axis.annotate("", (x, bottom), (x, top), arrowprops=arrow)
    axis.annotate(
        f"{top / bottom:.2g}x {word}",
        (x, (top * bottom) ** 0.5),  # halfway on a log axis
        xytext=(7, 0),
        textcoords="offset points",
        va="center",
        fontsize=10,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5},
    )


def _thousands(tokens: int) -> str:
    return f"{tokens // 1024}K" if tokens % 1024 == 0 else str(tokens)
