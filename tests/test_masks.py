"""Masks: every broadcast shape, every layout, mixed dtypes, and keys that are hidden in bulk."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest
import reference
from cases import DTYPES, Case, call, make, options, replace, to_numpy, verify
from layouts import MASK_LAYOUTS
from mlx_sdpa_ext import _ext
from tolerances import TOLERANCES, check, check_lse

SHAPES = ["", "1", "K", "1K", "Q1", "QK", "HQK", "H1K", "1QK", "11QK", "B11K", "1H1K", "1HQK"]
SHAPES += ["B1QK", "BH1K", "BHQ1", "BHQK", "1111"]
PATHS = {
    "fused": {"path": "fused"},
    "decode": {"path": "fused", "Lq": 1},
    "chunked": {"path": "chunked", "chunk_size": 20},
    "unfused": {"path": "unfused", "block_rows": 7},
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", ("bool", "additive"))
@pytest.mark.parametrize("shape", SHAPES)
def test_broadcast_shapes(shape, kind, path, rng):
    problem = {"B": 2, "Hq": 4, "Lq": 17, "Lk": 75, "D": 16} | PATHS[path]
    verify(Case(mask=kind, mask_shape=shape, **problem), rng)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("layout", MASK_LAYOUTS)
@pytest.mark.parametrize("kind, dtype", [("bool", "float32"), *(("additive", d) for d in DTYPES)])
def test_mask_layouts(kind, dtype, layout, path, rng):
    problem = {"B": 2, "Hq": 4, "Lq": 17, "Lk": 75, "D": 16} | PATHS[path]
    verify(Case(mask=kind, mask_shape="B1QK", mask_layout=layout, dtype=dtype, **problem), rng)


@pytest.mark.parametrize("mask_dtype", ("float16", "bfloat16"))
def test_a_narrower_additive_mask(mask_dtype, rng):
    verify(Case(mask="additive", mask_dtype=mask_dtype, Lq=17, D=16), rng)


@pytest.mark.parametrize("mask_dtype", (mx.int32, mx.uint8, mx.int64))
def test_an_integer_mask_is_additive(mask_dtype, rng):
    case = Case(Lq=9, Lk=33, D=16)
    x = make(case, rng)
    mask = rng.integers(0, 4, (9, 33)).astype(float)
    out, lse = call(case, *x.arrays, mx.array(mask, mask_dtype), None)
    expected = reference.attention(x.q, x.k, x.v, mask=mask, **options(case))
    check(to_numpy(out), expected[0], case.tolerance)
    check_lse(to_numpy(lse), expected[1], case.tolerance)


HIDDEN = {
    "first keys": np.s_[..., :40],
    "last keys": np.s_[..., 40:],
    "middle keys": np.s_[..., 20:70],
    "all but one key": np.s_[..., 1:],
    "first rows": np.s_[:, :, :33, :],
    "one head": np.s_[:, 1],
    "one batch": np.s_[0],
    "everything": np.s_[...],
}


@pytest.mark.parametrize("path", ("fused", "chunked", "unfused"))
@pytest.mark.parametrize("kind", ("bool", "additive"))
@pytest.mark.parametrize("sinks", (False, True), ids=("", "sinks"))
@pytest.mark.parametrize("hidden", HIDDEN)
def test_whole_blocks_are_hidden(hidden, sinks, kind, path, rng):
    """Blocks, chunks and rows that see nothing add nothing: 0 and -inf, never NaN."""
    case = Case(
        B=2, Hq=4, Lq=66, Lk=80, D=16, mask=kind, mask_shape="BHQK", sinks=sinks, path=path,
        chunk_size=16 if path == "chunked" else 0,
    )  # fmt: skip
    x = make(case, rng)
    seen = np.ones((2, 4, 66, 80), bool)
    seen[HIDDEN[hidden]] = False
    mask = seen if kind == "bool" else np.where(seen, 0.0, -np.inf)
    out, lse = call(
        case, *x.arrays, mx.array(mask, mx.bool_ if kind == "bool" else mx.float32), x.sinks_arg
    )
    expected = reference.attention(x.q, x.k, x.v, mask=mask, sinks=x.sinks, **options(case))
    check(to_numpy(out), expected[0], case.tolerance)
    check_lse(to_numpy(lse), expected[1], case.tolerance)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_most_negative_finite_mask(dtype, path, rng):
    """Libraries write 'hidden' as the dtype's lowest number. Beside a visible key it does hide."""
    problem = {"Hq": 4, "Lq": 17, "Lk": 75, "D": 16, "dtype": dtype} | PATHS[path]
    case = Case(**problem)
    x = make(case, rng)
    seen = rng.random((case.Lq, 75)) < 0.5
    seen[:, -1] = True
    lowest = mx.finfo(getattr(mx, dtype)).min
    mask = mx.where(mx.array(seen), mx.array(0.0), mx.array(lowest)).astype(getattr(mx, dtype))
    out = call(case, *x.arrays, mask, None)[0]
    expected, _ = reference.attention(x.q, x.k, x.v, mask=seen, **options(case))
    check(to_numpy(out), expected, case.tolerance)


@pytest.mark.parametrize("path", PATHS)
def test_a_row_of_the_most_negative_finite_mask_is_a_mean(path, rng):
    """Every score is lowest + s = lowest: an average of v, as in stock, and not NaN.

    One pass weighs the keys equally, like stock; merged parts may weigh parts of unequal length
    equally instead, since a float32 lse of -3e38 cannot hold the log of their lengths.
    """
    case = Case(**{"Hq": 4, "Lq": 17, "Lk": 75, "D": 16} | PATHS[path])
    x = make(case, rng)
    mask = mx.full((case.Lq, 75), mx.finfo(mx.float32).min)
    out = to_numpy(call(case, *x.arrays, mask, None)[0])
    v = np.repeat(x.v, 4 // case.Hkv, axis=1)
    if path in ("fused", "unfused"):
        check(out, np.broadcast_to(v.mean(-2, keepdims=True), out.shape), case.tolerance)
    assert (out < v.max(-2, keepdims=True)).all() and (out > v.min(-2, keepdims=True)).all()


@pytest.mark.parametrize("path", PATHS)
def test_a_mask_beyond_the_range_of_exp(path, rng):
    """Scores of +-1e30 pick their key and do not overflow."""
    case = Case(**{"Hq": 4, "Lq": 17, "Lk": 75, "D": 16} | PATHS[path])
    x = make(case, rng)
    mask = np.full((case.Lq, 75), -1e30)
    mask[:, 7] = 1e30
    out = to_numpy(call(case, *x.arrays, mx.array(mask), None)[0])
    picked = np.repeat(x.v[:, :, 7:8], 4 // case.Hkv, axis=1)
    check(out, np.broadcast_to(picked, out.shape), case.tolerance)


@pytest.mark.parametrize("window", (1, 2, 31, 32, 33, 64, 65, 126, 127, 128, 10**6))
@pytest.mark.parametrize("Lq", (1, 40, 127, 200))
def test_windows(Lq, window, rng):
    verify(Case(Hq=2, Hkv=1, Lq=Lq, D=32, mask="causal", window=window), rng)


@pytest.mark.parametrize("Lq, Lk", ((10, 30), (40, 20), (1, 70)))
@pytest.mark.parametrize("path", ("fused", "unfused"))
def test_a_window_longer_than_any_sequence_hides_nothing(path, Lq, Lk, rng):
    """Positions are added to it in 32 bits."""
    for window in (2**31 - 1, 2**31 - 10):
        verify(Case(Hq=2, Hkv=1, Lq=Lq, Lk=Lk, D=64, mask="causal", window=window, path=path), rng)


@pytest.mark.parametrize("path", ("fused", "chunked", "unfused"))
def test_a_window_equals_its_bool_mask(path, rng):
    case = Case(Hq=4, Lq=70, Lk=150, D=32, mask="causal", window=20, path=path)
    case = replace(case, chunk_size=32 if path == "chunked" else 0)
    x = make(case, rng)
    row, key = np.arange(70)[:, None] + 80, np.arange(150)[None]
    band = mx.array((key <= row) & (key > row - 20))
    windowed = call(case, *x.arrays, "causal", None)
    masked = call(replace(case, window=None), *x.arrays, band, None)
    check(to_numpy(windowed[0]), to_numpy(masked[0]), TOLERANCES["float32"])
    check_lse(to_numpy(windowed[1]), to_numpy(masked[1]), TOLERANCES["float32"])


@pytest.mark.parametrize("softcap", (0.25, 1.0, 50.0, 1e6))
@pytest.mark.parametrize("path", PATHS)
def test_softcaps(path, softcap, rng):
    problem = {"Hq": 4, "Lq": 17, "Lk": 75, "D": 16} | PATHS[path]
    verify(Case(softcap=softcap, mask="additive", sinks=True, **problem), rng)


@pytest.mark.parametrize("path", PATHS)
def test_a_softcap_beyond_float16(path, rng):
    """A softcap that the dtype cannot hold caps nothing, and makes nothing of it NaN."""
    problem = {"Hq": 4, "Lq": 17, "Lk": 75, "D": 16} | PATHS[path]
    verify(Case(softcap=1e5, dtype="float16", **problem), rng)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("sink", (-math.inf, -50.0, 0.0, 50.0))
def test_sinks(sink, path, rng):
    """A sink far below the scores changes nothing; one far above takes all the weight."""
    case = Case(**{"Hq": 4, "Lq": 17, "Lk": 75, "D": 16} | PATHS[path])
    x = make(case, rng)
    sinks = np.full(4, sink)
    out, lse = call(case, *x.arrays, "causal", mx.array(sinks))
    expected = reference.attention(x.q, x.k, x.v, mask="causal", sinks=sinks, **options(case))
    check(to_numpy(out), expected[0], case.tolerance)
    check_lse(to_numpy(lse), expected[1], case.tolerance)


def test_a_sink_counts_once_however_the_keys_are_split(rng):
    case = Case(Hq=4, Lq=9, Lk=64, D=16, sinks=True)
    x = make(case, rng)
    whole = call(case, *x.arrays, None, x.sinks_arg)
    for chunk_size in (1, 7, 32, 63, 64, 65):
        split = _ext.sdpa(
            *x.arrays, scale=case.scale, sinks=x.sinks_arg, chunk_size=chunk_size, return_lse=True
        )
        check(to_numpy(split[0]), to_numpy(whole[0]), case.tolerance)
        check_lse(to_numpy(split[1]), to_numpy(whole[1]), case.tolerance)
