"""The software Metal device's positive control: stock MLX's kernels, which Apple's compiler takes.

They compile in both modes, compute what the float64 reference does, and give no finding: the device
objects to nothing that is right.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import stock_metal as stock
from cases import Case, expected, make, rounded
from tolerances import EPS, STOCK_TOLERANCES, TOLERANCES, check, check_lse

DTYPES = ("float16", "bfloat16", "float32")
pytestmark = [pytest.mark.metal, pytest.mark.emulator]


@dataclass(frozen=True)
class StockCase(Case):
    @property
    def affinity(self) -> tuple:
        return ("stock", self.dtype, self.D, self.v_dim, self.mask == "bool")


def inputs(case: Case, rng):
    """Random ones; every row sees a key: stock averages V over those that a row does not see."""
    x = make(case, rng)
    if case.mask == "bool":
        x.mask |= ~x.mask.any(-1, keepdims=True)
    if case.mask == "additive":
        x.mask[(x.mask == -np.inf).all(-1)] = 0.0
    return x


def assert_right(case: Case, x, result, tolerances=TOLERANCES) -> None:
    out, lse = expected(case, x)
    check(result.out, out, tolerances[case.dtype])
    if result.lse is not None:
        check_lse(result.lse, lse, tolerances[case.dtype])


FULL = [
    StockCase(Hq=2, Hkv=1, D=D, dtype=dtype, **how)
    for D in (64, 128, 256)
    for dtype in DTYPES
    for how in (
        {"Lq": 64, "Lk": 96},
        {"Lq": 45, "Lk": 77, "mask": "causal", "sinks": True},
        {"Lq": 33, "Lk": 50, "mask": "bool", "q_layout": "heads", "k_layout": "cache"},
        {"Lq": 39, "Lk": 64, "mask": "additive", "v_layout": "heads"},
    )
]


@pytest.mark.parametrize("case", FULL, ids=str)
def test_full_attention(case, rng):
    x = inputs(case, rng)
    assert_right(case, x, stock.full(case, x))


@pytest.mark.parametrize("D, Dv", ((72, 72), (80, 80), (96, 64), (192, 192)))
def test_full_attention_at_other_head_dims(D, Dv, rng):
    case = StockCase(B=2, Hq=2, Hkv=2, Lq=34, Lk=45, D=D, Dv=Dv, dtype="float16", mask="causal")
    x = inputs(case, rng)
    assert_right(case, x, stock.full(case, x))


def test_full_attention_with_the_tile_of_the_largest_devices(rng):
    case = StockCase(Hq=2, Hkv=1, Lq=45, Lk=77, D=256, dtype="float16", mask="causal")
    x = inputs(case, rng)
    assert_right(case, x, stock.full(case, x, large=True))


VECTOR = [
    StockCase(D=D, Dv=Dv, dtype=dtype, **how)
    for D, Dv in ((64, 64), (128, 128), (256, 256))
    for dtype in DTYPES
    for how in (
        {"Hq": 4, "Hkv": 1, "Lq": 1, "Lk": 131},
        {"Hq": 2, "Hkv": 2, "Lq": 5, "Lk": 70, "mask": "causal", "q_layout": "heads"},
        {"B": 2, "Hq": 2, "Hkv": 1, "Lq": 3, "Lk": 67, "mask": "bool", "mask_shape": "BHQK"},
        {"Hq": 2, "Hkv": 1, "Lq": 2, "Lk": 99, "mask": "additive", "sinks": True},
    )
]


@pytest.mark.parametrize("attend", (stock.vector, stock.vector_two_pass))
@pytest.mark.parametrize("case", VECTOR, ids=str)
def test_few_query_rows(case, attend, rng):
    x = inputs(case, rng)
    # the first of two passes rounds sums, not averages, to the dtype
    tolerances = TOLERANCES if attend is stock.vector else STOCK_TOLERANCES
    assert_right(case, x, attend(case, x), tolerances)


@pytest.mark.parametrize(
    "D, Dv, how",
    (
        (192, 128, {}),
        (256, 256, {"ahead": 1}),
        (64, 64, {"shared": True}),
        (128, 128, {"shared": True}),
    ),
)
def test_two_passes_in_their_other_forms(D, Dv, how, rng):
    case = StockCase(B=2, Hq=16, Hkv=2, Lq=1, Lk=161, D=D, Dv=Dv, dtype="bfloat16")
    x = inputs(case, rng)
    run = partial(stock.vector_two_pass, blocks=64, **how)
    assert_right(case, x, run(case, x), STOCK_TOLERANCES)


@pytest.mark.parametrize("looped", (False, True))
@pytest.mark.parametrize("columns", (4, 127, 1001))
@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax(dtype, columns, looped, rng):
    x = rounded(3 * rng.standard_normal((3, columns)), dtype)
    P = np.exp(x - x.max(-1, keepdims=True))
    P /= P.sum(-1, keepdims=True)
    out = stock.softmax(x, dtype, looped).out
    # rounded once to the dtype; in float16 small ones are subnormal
    atol = 2.0**-25 if dtype == "float16" else 0.0
    np.testing.assert_allclose(out, P, rtol=max(EPS[dtype], 32 * EPS["float32"]), atol=atol)
