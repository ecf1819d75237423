"""Lengths at the edges of every compiled tile, read from the extension's own table of tiles."""

from __future__ import annotations

import pytest
from cases import DTYPES, Case, verify
from mlx_sdpa_ext import _ext

CPU_TILES = [tile for tile in _ext.tiles() if tile["backend"] == "cpu"]


def around(n: int) -> list[int]:
    """One tile and two, one less and one more."""
    return sorted({max(1, m + by) for m in (n, 2 * n) for by in (-1, 0, 1)})


def edges():
    """bq counts rows: query positions of all heads that share a KV head."""
    for tile in CPU_TILES:
        D, Dv = min(128, tile["d_max"]), min(64, tile["dv_max"])
        D, Dv = max(D, tile["d_min"]), max(Dv, tile["dv_min"])
        bq, bk = tile["bq"], tile["bk"]
        for dtype in tile["dtypes"]:
            shared = {"Hkv": 1, "D": D, "Dv": Dv, "dtype": dtype}
            for rows in around(bq):
                yield Case(Hq=1, Lq=rows, Lk=bk + 1, mask="causal", **shared)
                yield Case(Hq=3, Lq=max(1, rows // 3), Lk=2 * bk - 1, **shared)
            for Lk in around(bk):
                yield Case(Hq=2, Lq=max(1, bq // 2), Lk=Lk, mask="causal", **shared)
                yield Case(Hq=1, Lq=1, Lk=Lk, **shared)
            yield Case(Hq=bq, Lq=1, Lk=bk, **shared)
            yield Case(Hq=bq + 1, Lq=1, Lk=bk, **shared)


@pytest.mark.parametrize("case", list(dict.fromkeys(edges())), ids=str)
def test_tile_edges(case, rng):
    verify(case, rng)


def corners():
    for tile in CPU_TILES:
        for D in {tile["d_min"], tile["d_max"]}:
            for Dv in {tile["dv_min"], tile["dv_max"]}:
                yield Case(Hq=2, Hkv=1, Lq=3, Lk=41, D=D, Dv=Dv, dtype=tile["dtypes"][0])


@pytest.mark.parametrize("case", list(dict.fromkeys(corners())), ids=str)
def test_smallest_and_largest_dims_of_each_tile(case, rng):
    verify(case, rng)


def test_the_table_covers_what_is_promised():
    """Any D and Dv from 1 to 1024 in each dtype."""
    for dtype in DTYPES:
        rows = [tile for tile in CPU_TILES if dtype in tile["dtypes"]]
        for D in range(1, 1025):
            for Dv in (1, D, 1024):
                assert any(
                    row["d_min"] <= D <= row["d_max"] and row["dv_min"] <= Dv <= row["dv_max"]
                    for row in rows
                ), f"no CPU tile for D={D}, Dv={Dv}, {dtype}"
