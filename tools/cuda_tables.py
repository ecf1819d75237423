"""The README's tables of bench/results/cuda-*.json and models-*.json: one for each GPU measured."""

from __future__ import annotations

import json
from pathlib import Path

from cpu_tables import versions

MIB, GIB = 2**20, 2**30
TORCH = {"flash": "flash", "cudnn": "cuDNN"}


def records(results: Path, suite: str) -> list[tuple[str, dict]]:
    """Names and contents of the whole records; not of quick ones, or of parts."""
    read = ((path.stem, json.loads(path.read_text())) for path in results.glob(f"{suite}-*.json"))
    return [(name, r) for name, r in sorted(read) if not (r["quick"] or r.get("only"))]


def cuda(results: Path, docs: Path) -> str:
    """Speed and memory of each case, ceilings, growth; the picture above where it was drawn."""
    blocks = [_cuda(record, name, docs) for name, record in records(results, "cuda")]
    return "\n\n".join(blocks) or "Not measured yet: `mlx-sdpa-ext bench cuda`."


def _cuda(record: dict, name: str, docs: Path) -> str:
    rows = [r for r in record["results"] if r["case"] in ("prefill", "decode", "quantized")]
    torch = [name for name in TORCH if any(name in r.get("torch", {}) for r in rows)]
    titles = ["heads, queries x keys", "D", "ours", "by", "adds", "stock", "adds", "ratio"]
    titles += [f"PyTorch {TORCH[name]}" for name in torch]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    if (docs / f"{name}.png").exists():
        lines[:0] = [f"![TFLOP/s by head dim, GB/s by length](docs/{name}.png)", ""]
    for r in rows:
        ours, stock = r["ours"], r["stock"]
        dims = f"{r['D']}" if r["D"] == r["Dv"] else f"({r['D']}, {r['Dv']})"
        kind = f", {r['bits']}-bit K and V" if r["case"] == "quantized" else ""
        kind += f", {r['dtype']}" if r["dtype"] != "bfloat16" else ""
        causal = " causal" if r["mask"] else ""
        cells = [f"H{r['Hq']}/{r['Hkv']}, {r['Lq']} x {r['Lk']}{causal}{kind}", dims]
        cells += [_side(r, ours), _by(r), _added(ours), _side(r, stock), _added(stock)]
        cells += [f"{r['speedup']:.3g}x" if "speedup" in r else ""]
        cells += [_side(r, r.get("torch", {}).get(name)) for name in torch]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", " ".join([_ceilings(record), _growth(record), _where(record)])])


def _side(result: dict, side: dict | None) -> str:
    """The time and, by what bounds it, TFLOP/s or GB/s of K and V."""
    if side is None or "error" in side:
        return "-"
    few = result["Lq"] <= 16
    rate = f"{side['gb_per_s']:,.0f} GB/s" if few else f"{side['tflops']:,.0f} TFLOP/s"
    return f"{_time(side['median_s'])}, {rate}"


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-4 else f"{seconds * 1e6:.3g} us"


def _added(side: dict) -> str:
    if "error" in side:
        return side["error"]
    return f"{side['added_bytes'] / MIB:,.0f} MiB"


def _by(result: dict) -> str:
    """Path and provider of ours, as they were counted."""
    return ", ".join(f"{r['path']}/{r['provider']}" for r in result["taken"]) or "-"


def _ceilings(record: dict) -> str:
    best: dict[str, tuple[float, str]] = {}
    for r in record["results"]:
        if r["case"] == "ceiling" and "error" not in r:
            if r["name"] == "gemm":
                key, found = "tflops", f"{r['tflops']:,.0f} TFLOP/s (bfloat16 matmul, {r['by']})"
            else:
                key = "gb_per_s"
                found = f"{r['gb_per_s']:,.0f} GB/s (reading {r['bytes'] / 1e6:.0f} MB, {r['by']})"
            if key not in best or r[key] > best[key][0]:
                best[key] = (r[key], found)
    if not best:
        return ""
    return f"At most, in the same run: {', '.join(text for _, text in best.values())}."


def _growth(record: dict) -> str:
    found = {r["name"]: r for r in record["results"] if r["case"] == "growth"}
    said = []
    if "decode" in found:
        r = found["decode"]
        said.append(
            f"A cache that grows by a token from {r['from']} to {r['to']} keys: "
            f"{_time(r['median_s'])} a step, the slowest {r['max_over_median']:.2f} times "
            "that."
        )
    if "prefill" in found:
        r = found["prefill"]
        said.append(
            f"By {r['by']} from {r['from']} to {r['to']}: {_time(r['median_s'])} a step, the "
            f"slowest {r['max_over_median']:.2f} times that, and no step takes more than "
            f"{r['max_over_line']:.2f} times what the line through all says."
        )
    return " ".join(said)


def models(results: Path) -> str:
    """Prefill and decode of whole models, with the patch and without."""
    blocks = [_models(record) for _, record in records(results, "models")]
    return "\n\n".join(blocks) or "Not measured yet: `mlx-sdpa-ext bench models`."


def _models(record: dict) -> str:
    titles = ["model", "context", "prefill, ours", "stock", "ratio", "peak, ours", "stock"]
    titles += ["decode, ours", "stock", "equal tokens", "error, ours", "stock"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for r in record["results"]:
        points = [{p["context"]: p for p in r[side]["points"]} for side in ("ours", "stock")]
        reached = sorted(points[0].keys() | points[1].keys())
        for context in reached:
            ours, stock = (side.get(context) for side in points)
            last = context == reached[-1]
            cells = [f"{r['family']}: {r['attention']}" if context == reached[0] else ""]
            cells += [f"{context:,}", _speed(ours, r["ours"]), _speed(stock, r["stock"])]
            cells += [f"{stock['seconds'] / ours['seconds']:.3g}x" if ours and stock else ""]
            peaks = [side["peak_bytes"] / GIB if side else None for side in (ours, stock)]
            cells += [f"{peak:.1f} GiB" if peak is not None else "" for peak in peaks]
            cells += [_speed(r[side]["decode"]) if last else "" for side in ("ours", "stock")]
            cells.append(_same(r["agreement"]["decode"]) if last else "")
            cells += [_error(r.get("errors"), side, context) for side in ("ours", "stock")]
            lines.append(f"| {' | '.join(cells)} |")
    said = "Tokens a second. Peaks above the weights. Errors of the logits from stock's in float32."
    return "\n".join([*lines, "", f"{said} {_where(record)}"])


def _speed(point: dict | None, side: dict | None = None) -> str:
    if point:
        return f"{point['tokens_per_second']:,.0f}"
    return (side or {}).get("error", "-")


def _same(decoded: dict | None) -> str:
    if decoded is None:
        return ""
    apart = f"logits {decoded['max_abs']:.2g} of {decoded['max_abs_logit']:.2g} apart"
    return f"{decoded['equal']} of {decoded['tokens']}, {apart}"


def _error(errors: dict | None, side: str, context: int) -> str:
    if errors is None or errors["context"] != context:
        return ""
    return f"{errors[side] / errors['exact']:.2%}"


def _where(record: dict) -> str:
    at = record["environment"]
    part = " Interrupted." if record["interrupted"] else ""
    return f"{at['gpu']}; {versions(record)}; {at['date']}, commit {at['commit']}.{part}"
