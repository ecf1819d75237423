"""Dimensions of size 0 and 1: the shapes stock gives, zeros where there is no key."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from cases import DTYPES, Case, call, make, to_numpy, verify

PATHS = [
    {"path": "fused"},
    {"path": "chunked", "chunk_size": 4},
    {"path": "unfused"},
    {"path": "unfused", "block_rows": 2},
]
EMPTY = [
    {"B": 0},
    {"Lq": 0},
    {"Lk": 0},
    {"Lq": 0, "Lk": 0},
    {"B": 0, "Lk": 0},
]


@pytest.mark.parametrize("path", PATHS, ids=lambda p: "-".join(map(str, p.values())))
@pytest.mark.parametrize("mask", ("none", "causal", "bool", "additive"))
@pytest.mark.parametrize("sinks", (False, True), ids=("", "sinks"))
@pytest.mark.parametrize("empty", EMPTY, ids=lambda e: "-".join(e))
def test_empty(empty, sinks, mask, path, rng):
    shape = {"B": 2, "Hq": 4, "Hkv": 2, "Lq": 3, "Lk": 5, "D": 8, "Dv": 6} | empty
    case = Case(mask=mask, mask_shape="BHQK", sinks=sinks, **shape, **path)
    x = make(case, rng)
    out, lse = map(to_numpy, call(case, *x.arrays, x.mask_arg, x.sinks_arg))
    stock = mx.fast.scaled_dot_product_attention(
        *x.arrays, scale=case.scale, mask=x.mask_arg, sinks=x.sinks_arg
    )
    assert out.shape == stock.shape == (case.B, case.Hq, case.Lq, 6)
    assert lse.shape == out.shape[:3]
    assert (out == 0).all()
    nothing = np.broadcast_to(x.sinks[:, None], lse.shape) if sinks else -np.inf
    np.testing.assert_allclose(lse, np.broadcast_to(nothing, lse.shape), rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", ("none", "causal", "bool", "additive"))
@pytest.mark.parametrize("Lq", (1, 2, 40))
@pytest.mark.parametrize("D", (1, 64))
def test_one_key(Lq, D, mask, dtype, rng):
    verify(Case(Lq=Lq, Lk=1, D=D, mask=mask, dtype=dtype), rng)


def test_one_of_everything(rng):
    verify(
        Case(B=1, Hq=1, Hkv=1, Lq=1, Lk=1, D=1, mask="additive", mask_shape="1111", sinks=True), rng
    )


def test_more_queries_than_keys_under_causality(rng):
    """Lower-right alignment: the first Lq - Lk rows see nothing."""
    case = Case(Lq=40, Lk=7, D=16, mask="causal")
    x = make(case, rng)
    out, lse = map(to_numpy, call(case, *x.arrays, "causal", None))
    assert (out[:, :, :33] == 0).all() and (lse[:, :, :33] == -np.inf).all()
    assert np.isfinite(lse[:, :, 33:]).all()
    verify(case, rng)
