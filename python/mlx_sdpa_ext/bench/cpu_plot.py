"""Draw what the suite cpu measured: GFLOP/s of prefill by head dim, and the matmul's."""

from pathlib import Path

from .pictures import CEILING, STYLES, finish, label, panels_in_a_row, title

TORCH = STYLES["flash"] | {"label": "PyTorch"}


def plot(record: dict, path: Path) -> None:
    """Writes the picture of one record to `path` (PNG)."""
    prefills = [r for r in record["results"] if r["case"] == "prefill"]
    dtypes = list(dict.fromkeys(r["dtype"] for r in prefills))
    figure, panels = panels_in_a_row(len(dtypes))
    for axis, dtype in zip(panels, dtypes):
        of = sorted((r for r in prefills if r["dtype"] == dtype), key=_dims)
        for side, style in (("ours", STYLES["ours"]), ("stock", STYLES["stock"]), ("torch", TORCH)):
            points = [(x, _gflops(r, side)) for x, r in enumerate(of) if _gflops(r, side)]
            if points:
                axis.plot(*zip(*points), ms=5, **style)
        for peak in _peaks(record, dtype):
            axis.axhline(peak, **CEILING, label="matmul of PyTorch")
        names = [f"{D}" if Dv == D else f"({D},\n{Dv})" for D, Dv in map(_dims, of)]
        axis.set_xticks(range(len(of)), names)
        label(axis, f"{dtype} (GFLOP/s)", "head_dim, or (D, Dv)")
    finish(figure, panels, title(record, "2048 x 2048, 8 heads, causal"), path)


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
