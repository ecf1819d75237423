"""Writes the tables of README.md: who fuses what, the environment variables, and measurements.

    python tools/readme_tables.py            # rewrite README.md between its markers
    python tools/readme_tables.py --check    # exit code 1, with the difference, if out of date

A table stands between `<!-- table: NAME -->` and `<!-- /table -->`.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
import sys
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import cuda_tables
from mlx_sdpa_ext import device, limits, router
from mlx_sdpa_ext.stock import stock_route
from mlx_sdpa_ext.words import Device, Problem

ROOT = Path(__file__).resolve().parents[1]
HEAD_DIMS = (
    *((D, D) for D in (64, 72, 80, 96, 112, 128, 160, 192, 256, 512)),
    *((96, 64), (192, 128), (256, 128), (576, 512)),
)
MLX = "0.32.4"
MACHINES = {
    "CPU": Device.named("avx512", mlx=MLX, tiles=device.tiles()),
    "Metal": Device.named("applegpu_g16s", mlx=MLX, memory=36 << 30, tiles=device.tiles()),
    "CUDA": Device.named("sm_90", mlx=MLX, memory=80 << 30, tiles=device.tiles()),
}
# One step of a long prompt in mlx-lm, and one token: 16 heads on 2 KV heads, 32768 keys.
STEPS = {"prefill": 2048, "decode": 1}
OURS = {
    ("fused", "ext"): "**fused**",
    ("fused", "stock"): "**fused** (MLX's kernel)",
    ("unfused", "ext"): "**bounded**",
    ("chunked", "ext"): "**chunked**",
}


LEGEND = f"""
What MLX {MLX} does alone → what it does with this package, if that differs: *fused* in one pass;
*unfused*, with all the scores in memory; *blocked* or **bounded**, unfused on blocks of query rows.
Asked for are 2048 rows (prefill) or one (decode) against 32768 keys, 16 heads on 2, bfloat16,
causal; on the CPU, an M4 Max with 36 GiB, and compute capability 9.0. Calls that MLX does not have
(window, softcap, logsumexp) go to this package everywhere."""


def support() -> str:
    """Head dims down, machines and steps across; equal neighbours share a row."""
    titles = [f"{machine} {step}" for machine in MACHINES for step in STEPS]
    rows = [
        "| D, or (D, Dv) | " + " | ".join(titles) + " |",
        "|---" * (len(titles) + 1) + "|",
    ]
    for cells, dims in groupby(HEAD_DIMS, key=_cells):
        names = ", ".join(str(D) if Dv == D else f"({D}, {Dv})" for D, Dv in dims)
        rows.append(f"| {names} | " + " | ".join(cells) + " |")
    return "\n".join([*rows, LEGEND])


def _cells(dims: tuple[int, int]) -> tuple[str, ...]:
    return tuple(_cell(dims, where, Lq) for where in MACHINES.values() for Lq in STEPS.values())


def _cell(dims: tuple[int, int], where: Device, Lq: int) -> str:
    """What stock MLX does; with an arrow, what this package does instead."""
    problem = Problem(1, 16, 2, Lq, 32768, *dims, "bfloat16", "causal")
    route = router.route(problem, where, limits.of(where))
    stock = stock_route(problem, where).how
    if route.path == "stock":
        return stock
    return f"{stock} → {OURS[route.path, route.provider]}"


def environment() -> str:
    rows = ["| Variable | Default | Meaning |", "|---|---|---|"]
    rows += [f"| `{row.name}` | {row.default} | {row.meaning} |" for row in limits.VARIABLES]
    return "\n".join(rows)


def speed() -> str:
    """bench/results/cpu.json: ours, stock's and PyTorch's, measured in one run."""
    record = json.loads((RESULTS / "cpu.json").read_text(encoding="utf-8"))
    rows = [
        "| heads, queries x keys | D | dtype | ours | stock | ratio | PyTorch | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    ceilings = {"gemm": [], "read": []}
    grown = []
    for result in record["results"]:
        if result["case"] == "ceiling" and "error" not in result:
            ceilings[result["name"]].append(result)
        elif result["case"] == "growth":
            grown.append(result)
        elif "ours" in result:
            rows.append(_speed_row(result))
    picture = (
        "![GFLOP/s by head dim](docs/cpu.png)\n" if (ROOT / "docs" / "cpu.png").exists() else ""
    )
    notes = ["Medians; work counts visible scores only.", _ceilings(ceilings), _grown(grown)]
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
        math = ", unfused" if side.get("backend") == "math" else ""
        cells.append(f"{_ms(side['median_s'])}, {speed}{math}")
        if who != "ours":
            cells.append(f"{side['median_s'] / result['ours']['median_s']:.3g}x")
    return f"| {' | '.join(cells)} |"


def _ms(seconds: float) -> str:
    taken = seconds * 1e3
    return f"{taken:.3g} ms" if taken < 1000 else f"{taken:,.0f} ms"


def _ceilings(found: dict[str, list[dict]]) -> str:
    said = [f"{r['gflops']:,.0f} GFLOP/s ({r['dtype']} matmul)" for r in found["gemm"]]
    reads: dict[int, float] = {}
    for r in found["read"]:
        reads[r["bytes"]] = max(reads.get(r["bytes"], 0), r["gb_per_s"])
    said += [f"{rate:.3g} GB/s (reading {size / 2**20:.0f} MiB)" for size, rate in reads.items()]
    return f"At most, in the same run, by PyTorch and MLX: {', '.join(said)}." if said else ""


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


def memory() -> str:
    """bench/results/cpu-memory.json: peak memory by path."""
    record = json.loads((RESULTS / "cpu-memory.json").read_text(encoding="utf-8"))
    rows = ["| path | added above inputs and output | time |", "|---|---|---|"]
    for result in record["results"]:
        limit = result["limit_bytes"]
        name = result["path"] + (f", limit {limit >> 20} MiB" if limit else "")
        rows.append(f"| {name} | {result['added_mib']:.1f} MiB | {result['seconds']:.0f} s |")
    call = "H16/2, 2048 queries on 32768 keys, D 256, causal, float32."
    return "\n".join([*rows, "", f"{call} {where(record)}"])


def training() -> str:
    """bench/results/training.json: the backward pass by length, ours and stock's in one run."""
    record = json.loads((RESULTS / "training.json").read_text(encoding="utf-8"))
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


def where(record: dict) -> str:
    at = record["environment"]
    cpu = f"{at['device']}, {at['threads']} cores, {at['isa']}"
    return f"{cpu}; MLX {at['mlx']}; {at['date']}, commit {at['commit']}."


RESULTS = ROOT / "bench" / "results"
TABLES = {
    "support": support,
    "environment": environment,
    "speed": speed,
    "memory": memory,
    "training": training,
    "cuda": lambda: cuda_tables.cuda(RESULTS, ROOT / "docs"),
    "models": lambda: cuda_tables.models(RESULTS),
}
BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- /table -->)", re.DOTALL)


def rewrite(text: str, tables: dict[str, Callable[[], str]]) -> str:
    """`text` with every table as the code has it.

    Raises:
        ValueError: one of `tables` has no place in `text`, or a marker names none of them.
    """
    names = [match[2] for match in BLOCK.finditer(text)]
    if sorted(names) != sorted(tables):
        raise ValueError(f"tables: got {names}, expected one each of {list(tables)}")
    return BLOCK.sub(lambda match: f"{match[1]}{tables[match[2]]()}\n{match[3]}", text)


def main(
    arguments: list[str] | None = None,
    page: Path = ROOT / "README.md",
    tables: dict[str, Callable[[], str]] = TABLES,
) -> int:
    """Rewrites or checks a page: `page` unless the arguments name another."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path, nargs="?", default=page)
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if out of date")
    options = parser.parse_args(arguments)
    before = options.file.read_text(encoding="utf-8")
    after = rewrite(before, tables)
    if options.check:
        lines = [text.splitlines(keepends=True) for text in (before, after)]
        names = (str(options.file), Path(sys.argv[0]).name)
        sys.stdout.writelines(difflib.unified_diff(*lines, *names))
        return int(before != after)
    options.file.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
