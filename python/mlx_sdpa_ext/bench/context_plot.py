"""Draw what the suite context measured: time and memory by keys, and which path was taken."""

from pathlib import Path
from typing import Any

from .pictures import STYLES, finish, label, panels_in_a_row, title

PATHS = {"fused": "o", "unfused": "D", "chunked": "P", "stock": "X"}  # markers of our side
LEAST_BYTES = 2**10  # on a log axis


def plot(record: dict, path: Path) -> None:
    """Writes the picture of one record to `path` (PNG)."""
    results = [r for r in record["results"] if r["case"] == "context"]
    rows = list(dict.fromkeys(r["q"][2] for r in results))
    figure, panels = panels_in_a_row(2 * len(rows))
    for i, Lq in enumerate(rows):
        of = [r for r in results if r["q"][2] == Lq]
        name = f"{Lq:,} query rows" if Lq > 1 else "1 query row"
        _draw(panels[2 * i], of, lambda side: side["median_s"] * 1e3)
        _label(panels[2 * i], of, f"Time (ms), {name}")
        _draw(panels[2 * i + 1], of, lambda side: max(side["added_bytes"], LEAST_BYTES) / 2**20)
        _label(panels[2 * i + 1], of, f"Added memory (MiB), {name}")
    if results:
        (_, Hq, _, D), (_, Hkv, _, _) = results[0]["q"], results[0]["k"]
        words = f"{Hq} heads on {Hkv}, head_dim {D}, {results[0]['dtype']}"
        finish(figure, panels, title(record, words), path)


def _draw(axis: Any, results: list[dict], value: Any) -> None:
    style = STYLES["ours"]
    found = [(r["k"][2], value(r["ours"]), r["route"]["path"]) for r in results]
    axis.plot(*zip(*((x, y) for x, y, _ in found)), color=style["color"], lw=style["lw"])
    for path, marker in PATHS.items():
        points = [(x, y) for x, y, taken in found if taken == path]
        if points:
            name = f"{style['label']}: {path}"
            dots = {"color": style["color"], "marker": marker, "ls": "", "ms": 6}
            axis.plot(*zip(*points), **dots, label=name)
    stock = [(r["k"][2], value(r["stock"])) for r in results if "median_s" in r["stock"]]
    if stock:
        axis.plot(*zip(*stock), ms=5, **STYLES["stock"])


def _label(axis: Any, results: list[dict], name: str) -> None:
    keys = [r["k"][2] for r in results]
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(keys, [f"{n // 1024}K" if n % 1024 == 0 else f"{n}" for n in keys])
    axis.set_xticks([], minor=True)
    label(axis, name, "keys")
