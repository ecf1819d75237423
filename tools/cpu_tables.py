"""The README's tables of bench/results/cpu.json, cpu-memory.json and training.json."""

from __future__ import annotations

import json
from pathlib import Path

TIMED = (
    "Medians; work counts visible scores only. Calls of one row follow each other in one graph, as "
    "the layers of a model do: evaluated alone, such a call takes 0.1 to 0.25 ms longer here."
)


def speed(results: Path, docs: Path) -> str:
    """bench/results/cpu.json: ours, stock's and PyTorch's, measured in one run."""
    record = _record(results, "cpu.json")
    rows = [
        "| heads, queries x keys | D | dtype | ours | stock | ratio | PyTorch | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    peaks, grown = [], []
    for result in record["results"]:
        if result["case"] == "ceiling" and "error" not in result:
            peaks.append(result)
        elif result["case"] == "growth":
            grown.append(result)
        elif "ours" in result and "bits" not in result:
            rows.append(_speed_row(result))
    picture = "![GFLOP/s by head dim](docs/cpu.png)\n" if (docs / "cpu.png").exists() else ""
    notes = [TIMED, _peaks(peaks), _reads(record["results"]), _grown(grown)]
    return "\n".join([picture, *rows, "", " ".join([*filter(None, notes), where(record)])])


def _speed_row(result: dict) -> str:
    (_, Hq, Lq, D), (_, Hkv, Lk, _), Dv = result["q"], result["k"], result["v"][3]
    few = Lq == 1
    cells = [f"H{Hq}/{Hkv}, {Lq} x {Lk}{' causal' if result['mask'] else ''}"]
    cells += [f"{D}" if Dv == D else f"({D}, {Dv})", result["dtype"]]
    for who in ("ours", "stock", "torch"):
        side = result.get(who)
        if side is None or "error" in side:
            cells += ["-", "-"] if who == "torch" else ["-"]
            continue
        rate = result["flops"] / side["median_s"] / 1e9
        speed = f"{rate:.{0 if rate >= 10 else 1}f} GFLOP/s"
        if few:
            kv = result["kv_gb_per_s"] * result["ours"]["median_s"]
            speed = f"{kv / side['median_s']:.3g} GB/s"
            if who == "ours":
                speed += f" ({result['of_read']:.0%} of reading)"
        math = ", unfused" if side.get("backend") == "math" else ""
        cells.append(f"{_ms(side['median_s'])}, {speed}{math}")
        if who != "ours":
            cells.append(f"{side['median_s'] / result['ours']['median_s']:.3g}x")
    return f"| {' | '.join(cells)} |"


def _ms(seconds: float) -> str:
    taken = seconds * 1e3
    return f"{taken:.3g} ms" if taken < 1000 else f"{taken:,.0f} ms"


def _peaks(matmuls: list[dict]) -> str:
    said = [f"{r['gflops']:,.0f} GFLOP/s ({r['dtype']} matmul)" for r in matmuls]
    return f"At most, in the same run, by PyTorch: {', '.join(said)}." if said else ""


def _reads(results: list[dict]) -> str:
    parts = [part for r in results for part in r.get("read_gb_per_s", ())]
    if not parts:
        return ""
    rates = [rate for part in parts for rate in part]
    shares: dict[str, list[float]] = {}
    for r in results:
        if "of_reads" in r:
            shares.setdefault(r["dtype"], []).extend(r["of_reads"])
    single = ", ".join(
        f"{min(found):.0%} to {max(found):.0%} ({dtype})" for dtype, found in shares.items()
    )
    return (
        f"Reading as many bytes gave {min(rates):.3g} to {max(rates):.3g} GB/s, by PyTorch or MLX "
        "before and after each of the parts in which a decode step was timed; its share is the "
        f"median of theirs, which were {single}."
    )


def _grown(results: list[dict]) -> str:
    said = []
    for Lq in sorted({r["q"][2] for r in results}):
        of = [r for r in results if r["q"][2] == Lq]
        times = ", ".join(f"{r['ns_by_key']:.3g} ns at {r['k'][2]:,}" for r in of)
        added = ", ".join(f"{r['added_bytes'] / 2**20:.2g}" for r in of)
        said.append(f"{Lq} x: {times} (adds {added} MiB)")
    D = results[0]["q"][3] if results else 0
    text = "; ".join(said)
    return f"Time by key where keys grow, H8/1, D {D}, bfloat16, {text}." if said else ""


def quantized(results: Path) -> str:
    """bench/results/cpu.json: caches of 8 and 4 bits, beside float16 and mlx-lm's own attention."""
    record = _record(results, "cpu.json")
    rows = [
        "| queries x keys | D | bits | ours | adds | float16 | adds | ratio | mlx-lm | ratio |",
        "|---" * 10 + "|",
    ]
    for r in (result for result in record["results"] if "bits" in result):
        causal = " causal" if r["mask"] else ""
        cells = [f"{r['q'][2]} x {r['k'][2]}{causal}", str(r["q"][3]), str(r["bits"])]
        cells += [_ms(r["ours"]["median_s"]), f"{r['added_bytes'] / 2**20:.2g} MiB"]
        cells += [_ms(r["float16"]["median_s"]), f"{r['float16_added_bytes'] / 2**20:.2g} MiB"]
        cells += [f"{r['over_float16']:.2f}x", _ms(r["stock"]["median_s"]), f"{r['speedup']:.0f}x"]
        rows.append(f"| {' | '.join(cells)} |")
    call = "H8/1, groups of 64. float16 is ours over a cache that is not quantized."
    return "\n".join([*rows, "", f"{call} {where(record)}"])


def memory(results: Path) -> str:
    """bench/results/cpu-memory.json: peak memory by path."""
    record = _record(results, "cpu-memory.json")
    rows = ["| path | added above inputs and output | time |", "|---|---|---|"]
    for result in record["results"]:
        limit = result["limit_bytes"]
        name = result["path"] + (f", limit {limit >> 20} MiB" if limit else "")
        rows.append(f"| {name} | {result['added_mib']:.1f} MiB | {result['seconds']:.0f} s |")
    call = "H16/2, 2048 queries on 32768 keys, D 256, causal, float32."
    return "\n".join([*rows, "", f"{call} {where(record)}"])


def training(results: Path) -> str:
    """bench/results/training.json: the backward pass by length, ours and stock's in one run."""
    record = _record(results, "training.json")
    rows = ["| rows and keys | ours | adds | stock | adds | ratio |", "|---|---|---|---|---|---|"]
    for result in record["results"]:
        cells = [str(result["q"][2])]
        for who in ("ours", "stock"):
            added = result[who]["added_bytes"] / 2**20
            cells += [_ms(result[who]["backward_s"]), f"{added:,.1f} MiB"]
        ratio = result["stock"]["backward_s"] / result["ours"]["backward_s"]
        rows.append(f"| {' | '.join(cells)} | {ratio:.0f}x |")
    note = (
        "Time of the backward pass: both passes less the forward pass, medians of "
        "{ours[repeats]} runs (stock: of {stock[repeats]}). Memory: the peak of both passes above "
        "inputs and results."
    ).format(**record["results"][0])
    heads, D = record["results"][0]["q"][1], record["results"][0]["q"][3]
    return "\n".join(
        [*rows, "", f"H{heads}/{heads}, D {D}, causal, float32. {note} {where(record)}"]
    )


def _record(results: Path, name: str) -> dict:
    return json.loads((results / name).read_text(encoding="utf-8"))


def where(record: dict) -> str:
    at = record["environment"]
    cpu = f"{at['device']}, {at['threads']} cores, {at['isa']}"
    return f"{cpu}; {versions(record)}; {at['date']}, commit {at['commit']}."


def versions(record: dict) -> str:
    """MLX's, and PyTorch's where it ran beside."""
    of_torch = (r["torch"] for r in record["results"] if r.get("case") == "torch" and "torch" in r)
    return f"MLX {record['environment']['mlx']}" + "".join(f", PyTorch {v}" for v in of_torch)
