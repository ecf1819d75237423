"""The kernels' text: Metal's address spaces hold (mode T), and nothing is in it that Metal lacks.

Every row of tiles.def is instantiated. Stock MLX's kernels, which Apple's compiler takes, pass too.
"""

from __future__ import annotations

import itertools

import pytest
import stock_metal as stock
from cases import Case
from metal_kernels import (
    KERNELS,
    MSL_TYPES,
    TILES,
    attention_instance,
    flattened,
    function_of,
    merge_instance,
)
from stock_headers import source

import emulator

pytestmark = [pytest.mark.metal, pytest.mark.emulator]


def attention(function: str) -> str:
    tiles = [tile for tile in TILES if function_of(tile) == function]
    rows = [attention_instance(tile, dtype) for tile in tiles for dtype in tile.dtypes]
    return flattened(f"metal/{function}.h", KERNELS, set()) + "".join(rows)


def merge() -> str:
    pairs = itertools.product(MSL_TYPES, repeat=2)
    rows = [merge_instance(*pair) for pair in pairs]
    return flattened("metal/merge.h", KERNELS, set()) + "".join(rows)


OURS = {"prefill": attention("prefill"), "decode": attention("decode"), "merge": merge()}


@pytest.mark.parametrize("name", OURS)
def test_address_spaces(name):
    assert emulator.check_types(OURS[name]) == []


@pytest.mark.parametrize("name", OURS)
def test_lint(name):
    assert emulator.lint(OURS[name]) == []


# --- The positive control -----------------------------------------------------------------------


def full(dtype: str, dims: tuple[int, ...], mask: str) -> str:
    cases = [Case(D=D, dtype=dtype) for D in dims]
    rows = [stock.full_kernel(c, stock.full_tile(c.D, dtype), mask) for c in cases]
    text = source("steel/attn/kernels/steel_attention.h", *rows)
    # clang's OpenCL mode converts no object to a number in `pointer += object`
    return text.replace("src += str_y;", "src = src + str_y;")


def vector(D: int) -> str:
    types = MSL_TYPES.items()
    return source(
        "sdpa_vector.h",
        *((f"vector_{name}", "sdpa_vector", f"{T}, {D}, {D}") for name, T in types),
        *((f"first_{name}", "sdpa_vector_2pass_1", f"{T}, {D}, {D}, 4") for name, T in types),
        *((f"gqa_{name}", "sdpa_vector_2pass_1_gqa", f"{T}, {D}, {D}, 8, 4") for name, T in types),
        *((f"second_{name}", "sdpa_vector_2pass_2", f"{T}, {D}") for name, T in types),
    )


# Of the full kernel mode T leaves out what this clang cannot do in OpenCL mode: vectors of bool,
# and in float32 at D 256 the sum of two objects that convert to numbers.
TYPED = {
    "full float16": lambda: full("float16", (64, 128, 256), "float16"),
    "full bfloat16": lambda: full("bfloat16", (64, 128, 256), "bfloat16"),
    "full float32": lambda: full("float32", (64, 128), "float32"),
    "vector": lambda: vector(128),
}
LINTED = {
    **TYPED,
    "full float32 256": lambda: full("float32", (256,), "float32"),
    "full bool": lambda: full("float16", (64, 128, 256), "bool"),
}


@pytest.mark.parametrize("name", TYPED)
def test_address_spaces_of_stock(name):
    assert emulator.check_types(TYPED[name](), stock=True) == []


@pytest.mark.parametrize("name", LINTED)
def test_lint_of_stock(name):
    assert emulator.lint(LINTED[name](), stock=True) == []
