"""A minute on any machine: prefill and decode at some head dims, by the router and by stock."""

from collections.abc import Iterator
from pathlib import Path

from .beside import beside_stock, operands
from .pictures import STYLES, finish, label, panels_in_a_row, title

HEAD_DIMS = ((64, 64), (128, 128), (192, 128), (256, 256), (512, 512))
DTYPE = "bfloat16"
PREFILL, DECODE = (8, 8, 1024, 1024), (8, 1, 1, 16384)  # Hq, Hkv, Lq, Lk


def suite(quick: bool) -> Iterator[dict]:
    """Each case on both sides; `quick` a sixteenth of the work."""
    for name, (Hq, Hkv, Lq, Lk), repeats in (("prefill", PREFILL, 1), ("decode", DECODE, 5)):
        if quick:
            Lq, Lk = max(1, Lq // 4), Lk // 4
        for D, Dv in HEAD_DIMS:
            arrays = operands(Hq, Hkv, Lq, Lk, D, Dv, DTYPE)
            mask = "causal" if Lq > 1 else None
            yield beside_stock(name, arrays, mask, repeats, 7)


def plot(record: dict, path: Path) -> None:
    """Writes the picture of one record to `path` (PNG): milliseconds by head dim."""
    cases = list(dict.fromkeys(r["case"] for r in record["results"]))
    figure, panels = panels_in_a_row(len(cases))
    for axis, case in zip(panels, cases):
        of = [r for r in record["results"] if r["case"] == case]
        names = [_dims(r["q"][3], r["v"][3]) for r in of]
        for side in ("ours", "stock"):
            axis.plot([r[side]["median_s"] * 1e3 for r in of], ms=5, **STYLES[side])
        axis.set_yscale("log")
        axis.set_xticks(range(len(of)), names)
        shape = f"{of[0]['q'][2]} x {of[0]['k'][2]}, {of[0]['q'][1]} heads on {of[0]['k'][1]}"
        label(axis, f"{case} (ms): {shape}", "head_dim, or (D, Dv)")
    finish(figure, panels, title(record, DTYPE), path)


def _dims(D: int, Dv: int) -> str:
    return f"{D}" if Dv == D else f"({D},\n{Dv})"
