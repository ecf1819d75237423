"""What the Metal kernels do, counted on the software Metal device, beside stock MLX's prefill."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).parents[1]
# the software device, what drives kernels alone, and where stock's come from
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tools")]

import metal_kernels as ours  # noqa: E402
import stock_metal as stock  # noqa: E402
from cases import Case, Inputs, expected, make  # noqa: E402
from mlx_sdpa_ext.words import Tile  # noqa: E402
from tolerances import STOCK_TOLERANCES, check  # noqa: E402

DTYPES = ("float16", "bfloat16", "float32")
BESIDE_STOCK = ((64, 64), (128, 128), (192, 192), (256, 256))
# Stock's kernel of float32 at D 192 takes 40,448 bytes of threadgroup memory: no device can run it.
STOCK_TOO_LARGE = (192, "float32")
OURS_ALONE = ((192, 128), (512, 512), (576, 512))
LQ, LK = 64, 256  # of a prefill, one head, not causal
DECODE = ((64, 64), (128, 128), (192, 128), (256, 256), (512, 512), (576, 512))
GROUP, KEYS, SPLITS = 8, 1024, 4  # of a decode step: one query row of 8 heads on one KV head

COUNTERS = (
    "threadgroups", "multiplies", "threadgroup_read_bytes", "threadgroup_write_bytes",
    "threadgroup_memory_bytes", "threadgroup_barriers", "simdgroup_barriers", "shuffles",
    "reductions", "exp2", "device_read_bytes", "device_write_bytes",
)  # fmt: skip


class Run(NamedTuple):
    kernel: str
    threads: int
    counts: dict[str, int]


def inputs(case: Case) -> Inputs:
    return make(case, np.random.default_rng(0))


def counted(case: Case, x: Inputs, result, kernel: str, threads: int) -> Run:
    """The sums of a result that is right and of a run that the device has nothing to object to."""
    out, _ = expected(case, x)
    check(result.out.reshape(out.shape), out, STOCK_TOLERANCES[case.dtype])
    findings = [finding for report in result.reports for finding in report.findings]
    if findings:
        raise RuntimeError(f"{kernel}: {findings[0]}")
    counts = {
        name: sum(getattr(report.counters, name) for report in result.reports) for name in COUNTERS
    }
    counts["threadgroup_memory_bytes"] = max(
        report.counters.threadgroup_memory_bytes for report in result.reports
    )
    return Run(kernel, threads, counts)


def tile_of(kernel: str, D: int, Dv: int, dtype: str) -> Tile:
    """The first row of tiles.def that serves these."""
    return next(
        tile
        for tile in ours.TILES
        if tile.kernel == kernel and dtype in tile.dtypes and tile.d_max >= D and Dv <= tile.dv_max
    )


def prefill_case(D: int, Dv: int, dtype: str, Lk: int = LK) -> Case:
    return Case(Hq=1, Hkv=1, Lq=LQ, Lk=Lk, D=D, Dv=Dv, dtype=dtype, lse=False)


def our_prefill(case: Case) -> Run:
    tile = tile_of("prefill", case.D, case.v_dim, case.dtype)
    x = inputs(case)
    return counted(
        case, x, ours.attend(tile, case, x), ours.kernel_name(tile, case.dtype), tile.threads
    )


def stock_prefill(case: Case, large: bool = False) -> Run:
    tile = stock.full_tile(case.D, case.dtype, large)
    x = inputs(case)
    threads = 32 * tile.wm * tile.wn
    kernel = stock.full_kernel(case, tile, case.dtype)[0].split("_mask")[0]
    return counted(case, x, stock.full(case, x, large), kernel, threads)


def prefill_row(by: str, run, case: Case) -> dict:
    """The counts of the case, and the barriers that another 32 keys cost a threadgroup."""
    one, two = run(case), run(replace(case, Lk=2 * case.Lk))
    barriers = two.counts["threadgroup_barriers"] - one.counts["threadgroup_barriers"]
    return {
        "by": by,
        "kernel": one.kernel,
        "D": case.D,
        "Dv": case.v_dim,
        "dtype": case.dtype,
        "threads": one.threads,
        **one.counts,
        "threadgroup_read_bytes_per_multiply": one.counts["threadgroup_read_bytes"]
        / one.counts["multiplies"],
        "threadgroup_barriers_per_32_keys": 32 * barriers / (one.counts["threadgroups"] * case.Lk),
    }


def prefill() -> Iterator[dict]:
    """Ours beside stock's, both in this run; stock has a second tile for Ultras at D 256."""
    for dtype in DTYPES:
        for D, Dv in (*BESIDE_STOCK, *OURS_ALONE):
            case = prefill_case(D, Dv, dtype)
            yield prefill_row("ours", our_prefill, case)
            if (D, Dv) in BESIDE_STOCK and (D, dtype) != STOCK_TOO_LARGE:
                yield prefill_row("stock", stock_prefill, case)
            if D == Dv == 256 and dtype != "float32":
                yield prefill_row("stock, Ultra", lambda case: stock_prefill(case, True), case)


def decode_row(by: str, run: Run, case: Case) -> dict:
    """The counts of a decode step; K and V hold `kv_bytes`."""
    itemsize = 4 if case.dtype == "float32" else 2
    kv_bytes = case.Hkv * case.Lk * (case.D + case.v_dim) * itemsize
    return {
        "by": by,
        "kernel": run.kernel,
        "D": case.D,
        "Dv": case.v_dim,
        "dtype": case.dtype,
        "threads": run.threads,
        **run.counts,
        "kv_bytes": kv_bytes,
        "device_read_bytes_per_kv_byte": run.counts["device_read_bytes"] / kv_bytes,
    }


def decode_case(D: int, Dv: int, dtype: str) -> Case:
    return Case(Hq=GROUP, Hkv=1, Lq=1, Lk=KEYS, D=D, Dv=Dv, dtype=dtype)


def our_decode(case: Case) -> Run:
    """The keys split, and the splits merged."""
    x = inputs(case)
    tile = tile_of("decode", case.D, case.v_dim, case.dtype)
    parts = ours.attend(tile, case, x, ours.Launch(splits=SPLITS))
    merged = ours.merge(parts.out, parts.lse, out_dtype=case.dtype)
    merged.reports[:0] = parts.reports
    return counted(case, x, merged, ours.kernel_name(tile, case.dtype), tile.threads)


def decode() -> Iterator[dict]:
    """One query row of a GQA group; the keys in splits, their merge included."""
    for dtype in DTYPES:
        for D, Dv in DECODE:
            case = decode_case(D, Dv, dtype)
            yield decode_row("ours", our_decode(case), case)
