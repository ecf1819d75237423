"""Draw what `bench/run.py cuda` measured: TFLOP/s by head dim, and GB/s of decode by length.

python bench/plots.py                        bench/results/cuda-*.json to docs/cuda-*.png
python bench/plots.py RECORD.json PICTURE.png
"""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
# Told apart without colour too: by marker and by line.
STYLES = {
    "ours": {"color": "#1f5fbf", "marker": "o", "lw": 2, "label": "mlx-sdpa-ext"},
    "stock": {"color": "#c2571a", "marker": "s", "lw": 2, "label": "stock MLX"},
    "flash": {"color": "#3b8f4d", "marker": "^", "ls": "--", "label": "PyTorch, flash"},
    "cudnn": {"color": "#8a5ab5", "marker": "v", "ls": "--", "label": "PyTorch, cuDNN"},
}
CEILING = {"color": "#8a8a8a", "ls": ":", "lw": 1.2}


def side_of(result: dict, name: str) -> dict:
    """What ours, stock's or one of torch's kernels did; an error if it was not measured."""
    where = result if name in ("ours", "stock") else result.get("torch", {})
    return where.get(name, {"error": "not measured"})


def head_dim(result: dict) -> str:
    D, Dv = result["D"], result["Dv"]
    return f"{D}" if Dv == D else f"({D},\n{Dv})"


def ceiling(record: dict, name: str, unit: str) -> dict[int, float]:
    """By size, the better of what MLX and PyTorch reach."""
    found: dict[int, float] = {}
    for result in record["results"]:
        if result["case"] == "ceiling" and result["name"] == name and unit in result:
            size = result["n"] if name == "gemm" else result["bytes"]
            found[size] = max(found.get(size, 0.0), result[unit])
    return found


def groups(record: dict) -> list[tuple[str, list[dict]]]:
    """The bfloat16 prefills, by what they have in common."""
    found: dict[str, list[dict]] = {}
    for result in record["results"]:
        if result["case"] == "prefill" and result["dtype"] == "bfloat16":
            heads = f"{result['Hq']} heads on {result['Hkv']}"
            found.setdefault(f"{result['Lq']} x {result['Lk']}, {heads}", []).append(result)
    for results in found.values():
        results.sort(key=lambda result: (result["D"], result["Dv"]))
    return list(found.items())


def curve(record: dict) -> list[dict]:
    """Decode of one row at the head dim with the most lengths, in their order."""
    rows = [r for r in record["results"] if r["case"] == "decode" and r["Lq"] == 1]
    by_dim: dict[tuple[int, int], list[dict]] = {}
    for result in rows:
        by_dim.setdefault((result["D"], result["Dv"]), []).append(result)
    longest = max(by_dim.values(), key=len, default=[])
    return sorted(longest, key=lambda result: result["Lk"])


def plot(record: dict, path: Path) -> None:
    """Writes the picture of one record to `path` (PNG)."""
    prefills, lengths = groups(record), curve(record)
    figure, panels = panels_in_a_row(len(prefills) + bool(lengths))
    for axis, (name, results) in zip(panels, prefills):
        _draw(axis, results, range(len(results)), "tflops")
        axis.set_xticks(range(len(results)), [head_dim(result) for result in results])
        for peak in ceiling(record, "gemm", "tflops").values():
            axis.axhline(peak, **CEILING, label="bfloat16 matmul")
        label(axis, f"Prefill (TFLOP/s): {name}", "head_dim, or (D, Dv)")
    if lengths:
        axis = panels[len(prefills)]
        keys = [result["Lk"] for result in lengths]
        _draw(axis, lengths, keys, "gb_per_s")
        read = ceiling(record, "read", "gb_per_s")
        line = [(r["Lk"], read[r["kv_bytes"]]) for r in lengths if r["kv_bytes"] in read]
        if line:
            axis.plot(*zip(*line), **CEILING, label="reading so much")
        axis.set_xscale("log", base=2)
        axis.set_xticks(keys, [f"{n // 1024}K" for n in keys])
        axis.set_xticks([], minor=True)
        heads = f"{lengths[0]['Hq']} heads on {lengths[0]['Hkv']}, head_dim {lengths[0]['D']}"
        label(axis, f"Decode (GB/s of K and V): {heads}", "keys")
    finish(figure, panels, title(record, "bfloat16, causal"), path)


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


def _draw(axis: Any, results: list[dict], xs: Any, unit: str) -> None:
    for name, style in STYLES.items():
        sides = [(x, side_of(result, name)) for x, result in zip(xs, results)]
        points = [(x, side[unit]) for x, side in sides if unit in side]
        if points:
            axis.plot(*zip(*points), ms=5, **style)


def label(axis: Any, name: str, across: str) -> None:
    axis.set_ylim(bottom=0)
    axis.set_xlabel(across)
    axis.set_title(name, loc="left", fontsize=10)
    axis.grid(which="major", color="#e3e3e3", lw=0.8)
    axis.spines[["top", "right"]].set_visible(False)


def main(draw: Callable[[dict, Path], None] = plot, pattern: str = "cuda-*.json") -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("record", type=Path, nargs="?")
    parser.add_argument("picture", type=Path, nargs="?")
    options = parser.parse_args()
    records = [options.record] if options.record else sorted(RESULTS.glob(pattern))
    for record in records:
        picture = options.picture or ROOT / "docs" / f"{record.stem}.png"
        draw(json.loads(record.read_text()), picture)
        print(f"wrote {picture}")


if __name__ == "__main__":
    main()
