"""Every Metal row of tiles.def runs: as the plan chooses it, at lengths around the tile's edges."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import pytest
from cases import Case, verify
from metal_kernels import TILES, kernel_name
from metal_pool import executed
from mlx_sdpa_ext import _ext
from mlx_sdpa_ext.words import Tile

import emulator

pytestmark = [pytest.mark.metal, pytest.mark.emulator]
MOST_THREADS = 1024


@dataclass(frozen=True)
class TileCase:
    tile: Tile
    case: Case
    threads: int  # that the device's pipelines take

    @property
    def affinity(self) -> tuple:
        return self.case.affinity

    def __str__(self) -> str:
        limit = "" if self.threads == MOST_THREADS else f"-threads{self.threads}"
        return f"{kernel_name(self.tile, self.case.dtype)}-{self.case}{limit}"


@lru_cache(None)
def planned(rows: int, D: int, Dv: int, dtype: str, threads: int) -> str:
    plan = _ext.plan(
        1, 1, 1, rows, 64, D, Dv, dtype, backend="metal", arch="applegpu_g15s", max_threads=threads
    )
    return plan["kernel"]


def rows_of(tile: Tile, dtype: str, threads: int) -> list[int]:
    """Numbers of rows at the tile's edges for which the plan takes it."""
    edges = (1, tile.bq - 1, tile.bq, tile.bq + 1, 2 * tile.bq + 1)
    name = kernel_name(tile, dtype)
    return [
        rows
        for rows in edges
        if rows > 0 and planned(rows, tile.d_max, tile.dv_max, dtype, threads) == name
    ]


def edges():
    for tile in TILES:
        for dtype in tile.dtypes:
            # a row that others stand in front of is for devices whose pipelines take few threads
            for threads in (MOST_THREADS, tile.threads):
                some = rows_of(tile, dtype, threads)
                if some:
                    break
            assert some, f"nothing is ever served by {tile} in {dtype}"
            step = tile.bk * (tile.wm if tile.kernel == "decode" else 1)
            keys = (tile.bk - 1, step, step + 1, 2 * step - 1)
            for i in range(max(len(some), len(keys))):
                rows = some[i % len(some)]
                group = 3 if rows % 3 == 0 else 1
                case = Case(
                    Hq=2 * group, Hkv=2, Lq=rows // group, Lk=keys[i % len(keys)], D=tile.d_max,
                    Dv=tile.dv_max, dtype=dtype, mask="causal" if i % 2 else "none", sinks=i == 2,
                )  # fmt: skip
                yield TileCase(tile, case, threads)


CASES = list(edges())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_tile_edges(case, rng):
    emulator.set_max_threads("", case.threads)
    try:
        verify(case.case, rng)
    finally:
        emulator.set_max_threads("", 0)
    assert kernel_name(case.tile, case.case.dtype) in executed()


def test_every_row_runs_in_every_dtype():
    ran = {(case.tile, case.case.dtype) for case in CASES}
    assert ran == {(tile, dtype) for tile in TILES for dtype in tile.dtypes}


def test_the_table_covers_what_is_promised():
    """Any D up to 576 with any Dv up to 512, in each dtype."""
    for dtype in ("float32", "float16", "bfloat16"):
        for kernel in ("prefill", "decode"):
            rows = [t for t in TILES if t.kernel == kernel and dtype in t.dtypes]
            for D in range(1, 577):
                for Dv in (1, min(D, 512), 512):
                    assert any(
                        t.d_min <= D <= t.d_max and t.dv_min <= Dv <= t.dv_max for t in rows
                    ), f"no Metal {kernel} tile for D={D}, Dv={Dv}, {dtype}"
