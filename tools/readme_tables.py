"""Writes the tables of README.md: who fuses what, the environment variables, and measurements.

    python tools/readme_tables.py            # rewrite README.md between its markers
    python tools/readme_tables.py --check    # exit code 1, with the difference, if out of date

A table stands between `<!-- table: NAME -->` and `<!-- /table -->`.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import cpu_tables
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


RESULTS = ROOT / "bench" / "results"
TABLES = {
    "support": support,
    "environment": environment,
    "speed": lambda: cpu_tables.speed(RESULTS, ROOT / "docs"),
    "quantized": lambda: cpu_tables.quantized(RESULTS),
    "memory": lambda: cpu_tables.memory(RESULTS),
    "training": lambda: cpu_tables.training(RESULTS),
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
