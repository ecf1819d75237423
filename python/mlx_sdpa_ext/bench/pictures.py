"""What the pictures of records share: styles, panels, one legend, title and file."""

import os
from pathlib import Path
from typing import Any

# Told apart without colour too: by marker and by line.
STYLES = {
    "ours": {"color": "#1f5fbf", "marker": "o", "lw": 2, "label": "mlx-sdpa-ext"},
    "stock": {"color": "#c2571a", "marker": "s", "lw": 2, "label": "stock MLX"},
    "flash": {"color": "#3b8f4d", "marker": "^", "ls": "--", "label": "PyTorch, flash"},
    "cudnn": {"color": "#8a5ab5", "marker": "v", "ls": "--", "label": "PyTorch, cuDNN"},
}
CEILING = {"color": "#8a8a8a", "ls": ":", "lw": 1.2}


def panels_in_a_row(count: int) -> tuple[Any, list[Any]]:
    """A figure of matplotlib and its axes, at least one."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    size = (1 + 4.2 * max(1, count), 4.8)
    layout = {"figsize": size, "layout": "constrained", "squeeze": False}
    figure, axes = plt.subplots(1, max(1, count), **layout)
    return figure, list(axes[0])


def finish(figure: Any, panels: list[Any], words: str, path: Path) -> None:
    """One legend for all panels, the title, and the file: a reader sees the old or the new one."""
    import matplotlib.pyplot as plt

    labels: dict = {}
    for axis in panels:
        labels |= dict(zip(*reversed(axis.get_legend_handles_labels())))
    if labels:
        where = {"loc": "outside lower center", "ncols": len(labels)}
        figure.legend(labels.values(), labels.keys(), frameon=False, fontsize=9, **where)
    figure.suptitle(f"{words}\n", x=0.01, ha="left", fontsize=12, fontweight="bold")
    part = path.with_name(path.name + ".part")
    figure.savefig(part, dpi=150, format="png")
    plt.close(figure)
    os.replace(part, path)


def title(record: dict, calls: str) -> str:
    """Where and when, and what the calls have in common."""
    at = record["environment"]
    where = f"{at.get('gpu') or at['device']}, MLX {at['mlx']}, {at['date']}"
    return f"{where}: {calls}; work counts visible scores only"


def label(axis: Any, name: str, across: str) -> None:
    if axis.get_yscale() == "linear":
        axis.set_ylim(bottom=0)
    axis.set_xlabel(across)
    axis.set_title(name, loc="left", fontsize=10)
    axis.grid(which="major", color="#e3e3e3", lw=0.8)
    axis.spines[["top", "right"]].set_visible(False)
