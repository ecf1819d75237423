"""Draw what `bench/run.py cpu` measured: GFLOP/s of prefill by head dim, and the matmul's.

python bench/cpu_plot.py                     bench/results/cpu.json to docs/cpu.png
python bench/cpu_plot.py RECORD.json PICTURE.png
"""

import os
from pathlib import Path

from plots import CEILING, STYLES, main, title

TORCH = STYLES["flash"] | {"label": "PyTorch"}


def plot(record: dict, path: Path) -> None:
    """Writes the picture of one record to `path` (PNG)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    prefills = [r for r in record["results"] if r["case"] == "prefill"]
    dtypes = list(dict.fromkeys(r["dtype"] for r in prefills))
    count = max(1, len(dtypes))
    size = (1 + 4.2 * count, 4.8)
    figure, axes = plt.subplots(1, count, figsize=size, layout="constrained", squeeze=False)
    for axis, dtype in zip(axes[0], dtypes):
        of = sorted((r for r in prefills if r["dtype"] == dtype), key=_dims)
        for side, style in (("ours", STYLES["ours"]), ("stock", STYLES["stock"]), ("torch", TORCH)):
            points = [(x, _gflops(r, side)) for x, r in enumerate(of) if _gflops(r, side)]
            if points:
                axis.plot(*zip(*points), ms=5, **style)
        for peak in _peaks(record, dtype):
            axis.axhline(peak, **CEILING, label="matmul of PyTorch")
        names = [f"{D}" if Dv == D else f"({D},\n{Dv})" for D, Dv in map(_dims, of)]
        axis.set_xticks(range(len(of)), names)
        axis.set_ylim(bottom=0)
        axis.set_xlabel("head_dim, or (D, Dv)")
        axis.set_title(f"{dtype} (GFLOP/s)", loc="left", fontsize=10)
        axis.grid(which="major", color="#e3e3e3", lw=0.8)
        axis.spines[["top", "right"]].set_visible(False)
    labels: dict = {}
    for axis in axes[0]:
        labels |= dict(zip(*reversed(axis.get_legend_handles_labels())))
    if labels:
        where = {"loc": "outside lower center", "ncols": len(labels)}
        figure.legend(labels.values(), labels.keys(), frameon=False, fontsize=9, **where)
    words = title(record).replace("bfloat16, causal", "2048 x 2048, 8 heads, causal")
    figure.suptitle(f"{words}\n", x=0.01, ha="left", fontsize=12, fontweight="bold")
    part = path.with_name(path.name + ".part")
    figure.savefig(part, dpi=150, format="png")
    plt.close(figure)
    os.replace(part, path)


def _dims(result: dict) -> tuple[int, int]:
    return result["q"][3], result["v"][3]


def _gflops(result: dict, side: str) -> float | None:
    """None where it was not measured."""
    found = result.get(side, {})
    return result["flops"] / found["median_s"] / 1e9 if "median_s" in found else None


def _peaks(record: dict, dtype: str) -> list[float]:
    return [
        r["gflops"]
        for r in record["results"]
        if r["case"] == "ceiling" and r["name"] == "gemm" and r["dtype"] == dtype and "gflops" in r
    ]


if __name__ == "__main__":
    main(plot, "cpu.json")
