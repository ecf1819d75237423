"""Operands as callers store them; what lies unused beside them is NaN."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from cases import DTYPES, Case, call, make, to_numpy, verify
from layouts import LAYOUTS

SHAPES = {
    "prefill": {"Lq": 17, "Lk": 150},
    "decode": {"Lq": 1, "Lk": 150},
    "chunked": {"Lq": 17, "Lk": 150, "path": "chunked", "chunk_size": 64},
    "unfused": {"Lq": 17, "Lk": 150, "path": "unfused", "block_rows": 5},
}


@pytest.mark.parametrize("operand", ("q", "k", "v", "all"))
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_operand(layout, shape, operand, rng):
    names = "qkv" if operand == "all" else operand
    chosen = {f"{name}_layout": layout for name in names}
    verify(Case(B=2, Hq=4, D=20, Dv=12, mask="causal", **chosen, **SHAPES[shape]), rng)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("Lq", (1, 17))
def test_every_layout_in_every_dtype(Lq, layout, dtype, rng):
    chosen = {f"{name}_layout": layout for name in "qkv"}
    verify(Case(B=2, Hq=4, Lq=Lq, Lk=150, D=40, dtype=dtype, **chosen), rng)


def test_q_k_and_v_of_one_fused_projection(rng):
    """Views [B, L, (Hq + 2 Hkv) D] -> q, k, v: one buffer, three offsets."""
    case = Case(B=2, Hq=4, Hkv=2, Lq=33, Lk=33, D=16, mask="causal")
    x = make(case, rng)
    parts = [a.swapaxes(1, 2).flatten(2) for a in x.arrays]
    fused = mx.concatenate(parts, axis=-1)
    mx.eval(fused)
    q, k, v = mx.split(fused, [64, 96], axis=-1)
    views = [a.reshape(2, 33, -1, 16).swapaxes(1, 2) for a in (q, k, v)]
    packed = call(case, *x.arrays, "causal", None)
    strided = call(case, *views, "causal", None)
    np.testing.assert_array_equal(to_numpy(strided[0]), to_numpy(packed[0]))
    np.testing.assert_array_equal(to_numpy(strided[1]), to_numpy(packed[1]))


def test_one_array_as_q_k_and_v(rng):
    case = Case(B=2, Hq=4, Hkv=4, Lq=33, Lk=33, D=16)
    x = make(case, rng).arrays[0]
    shared = call(case, x, x, x, None, None)
    apart = call(case, x, mx.array(np.array(x)), mx.array(np.array(x)), None, None)
    np.testing.assert_array_equal(to_numpy(shared[0]), to_numpy(apart[0]))


def test_inputs_stay_as_they_are(rng):
    """An input that nobody else holds may be reused by stock ops, never by a caller's array."""
    case = Case(Lq=17, Lk=150, mask="additive", sinks=True)
    x = make(case, rng)
    arrays = (*x.arrays, x.mask_arg, x.sinks_arg)
    mx.eval(arrays)
    before = [to_numpy(a) for a in arrays]
    mx.eval(call(case, *x.arrays, x.mask_arg, x.sinks_arg))
    for a, b in zip(arrays, before):
        np.testing.assert_array_equal(to_numpy(a), b)


def test_temporaries_as_inputs(rng):
    """Inputs that are results of other ops and die with the call."""
    case = Case(Lq=17, Lk=150)
    x = make(case, rng)
    q, k, v = x.arrays
    kept = call(case, *x.arrays, None, None)
    fresh = call(case, q * 1, k * 1, v * 1, None, None)
    np.testing.assert_array_equal(to_numpy(fresh[0]), to_numpy(kept[0]))
