"""Every Metal tile alone: features, ragged edges, parts of the grid and of the keys, carries."""

from __future__ import annotations

import numpy as np
import pytest
from cases import Case, make
from metal_cases import KernelCase, run_case, run_kernel_case
from metal_kernels import TILES, Launch
from metal_pool import assert_clean
from mlx_sdpa_ext.words import Tile
from pairwise import pairwise

pytestmark = [pytest.mark.metal, pytest.mark.emulator]

# Rows are query positions times the heads of a group; (rows, keys) in rows and keys of a tile.
LENGTHS = {
    "one": lambda bq, bk: (1, 1),
    "exact": lambda bq, bk: (bq, 2 * bk),
    "less": lambda bq, bk: (bq - 1, 2 * bk - 1),
    "more": lambda bq, bk: (bq + 1, 2 * bk + 1),
    "tall": lambda bq, bk: (2 * bq + 5, bk + 3),
    "long": lambda bq, bk: (min(bq, 9), 5 * bk + 2),
}
HEADS = [(1, 1, 1), (1, 3, 1), (2, 4, 2), (1, 8, 1)]
DIMS = ("full", "less", "odd")
MASKS = [
    {"mask": "none"},
    {"mask": "causal"},
    {"mask": "causal", "window": 1},
    {"mask": "causal", "window": 11},
    {"mask": "bool", "mask_shape": "BHQK"},
    {"mask": "bool", "mask_shape": "1H1K"},
    {"mask": "bool", "mask_shape": "B1Q1"},
    {"mask": "additive", "mask_shape": "11QK"},
    {"mask": "additive", "mask_shape": "BHQK", "mask_layout": "ring"},
    {"mask": "additive", "mask_shape": "B11K", "mask_dtype": "float32"},
]
LAYOUTS = ("contiguous", "heads", "ring", "columns", "strided", "reversed_last", "one_head")
PARTS = ("all", "range", "carry", "carry in place", "splits", "many splits", "cuts")

FACTORS = {
    "kernel": [(tile, dtype) for tile in TILES for dtype in tile.dtypes],
    "lengths": tuple(LENGTHS),
    "heads": HEADS,
    "dims": DIMS,
    "masking": MASKS,
    "softcap": (None, 3.0),
    "sinks": (False, True),
    "lse": (False, True),
    "out_f32": (False, True),
    "scalar_loads": (False, True),
    "q_layout": LAYOUTS,
    "k_layout": LAYOUTS,
    "v_layout": LAYOUTS,
    "part": PARTS,
}


def dims_of(tile: Tile, kind: str) -> tuple[int, int]:
    if kind == "full":
        return tile.d_max, tile.dv_max
    if kind == "less":  # multiples of 4: whole vectors
        return max(4, tile.d_max - 20), max(4, tile.dv_max - 12)
    return tile.d_max - 3, tile.dv_max - 1


def kernel_case(
    *, kernel, lengths, heads, dims, masking, part, out_f32, scalar_loads, **rest
) -> KernelCase:
    tile, dtype = kernel
    B, Hq, Hkv = heads
    rows, Lk = LENGTHS[lengths](tile.bq, tile.bk)
    if tile.kernel != "prefill":
        rows = min(rows, tile.bq)
    D, Dv = dims_of(tile, dims)
    case = Case(
        B=B, Hq=Hq, Hkv=Hkv, Lq=max(1, rows * Hkv // Hq), Lk=Lk, D=D, Dv=Dv, dtype=dtype,
        **masking, **rest,
    )  # fmt: skip
    return KernelCase(tile, case, part, out_f32, scalar_loads)


CASES = list(dict.fromkeys(kernel_case(**row) for row in pairwise(FACTORS)))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_tiles(case, rng):
    for report in run_kernel_case(case, rng):
        assert_clean(report)


# --- Masks that hide whole blocks: the kernel looks 32 of them ahead ----------------------------

HIDDEN = {
    "nothing": np.s_[..., :0],
    "the first blocks": np.s_[..., :300],
    "the middle": np.s_[..., 20:1090],
    "all but the last key": np.s_[..., :-1],
    "every other block": np.s_[..., [k for k in range(1100) if k // 32 % 2]],
    "everything": np.s_[...],
    "one head": np.s_[:, 1],
    "the first rows": np.s_[:, :, :4],
}
MIDDLE = next(tile for tile in TILES if tile.kernel == "middle")


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("kind", ("bool", "additive"))
@pytest.mark.parametrize("kernel", ("middle", "prefill", "decode"))
def test_masks_that_hide_blocks(kernel, kind, hidden, rng):
    tile = next(tile for tile in TILES if tile.kernel == kernel)
    Lq = min(7, tile.bq // 2)
    dtype = "float32" if kernel == "middle" else "float16"
    case = Case(
        Hq=2, Hkv=1, Lq=Lq, Lk=1100, D=tile.d_max, dtype=dtype, mask=kind, mask_shape="BHQK"
    )
    x = make(case, rng)
    x.mask = np.ones((1, 2, Lq, 1100), bool)
    x.mask[HIDDEN[hidden]] = False
    if kind == "additive":
        x.mask = np.where(x.mask, 0.0, -np.inf)
    for report in run_case(case, x, tile, (0, 1100), Launch()):
        assert_clean(report)
