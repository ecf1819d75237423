"""Draw what the suite cuda measured: TFLOP/s by head dim, and GB/s of decode by length."""

from pathlib import Path
from typing import Any

from .pictures import CEILING, STYLES, finish, label, panels_in_a_row, title


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


def _draw(axis: Any, results: list[dict], xs: Any, unit: str) -> None:
    for name, style in STYLES.items():
        sides = [(x, side_of(result, name)) for x, result in zip(xs, results)]
        points = [(x, side[unit]) for x, side in sides if unit in side]
        if points:
            axis.plot(*zip(*points), ms=5, **style)
