"""NaN and infinities in the inputs reach what they must, and nothing that stock keeps clean."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest
from cases import Case, Inputs, call, expected, make, to_numpy
from tolerances import check_lse

PATHS = {
    "fused": {"path": "fused"},
    "decode": {"path": "fused", "Lq": 1},
    "split decode": {"path": "fused", "Lq": 1, "Lk": 700},
    "chunked": {"path": "chunked", "chunk_size": 32},
    "unfused": {"path": "unfused", "block_rows": 8},
}
MASKS = {
    "none": {},
    "causal": {"mask": "causal"},
    "bool": {"mask": "bool"},
    "additive": {"mask": "additive", "mask_shape": "HQK"},
}
PLACES = {  # operand, index
    "q": ("q", np.s_[0, 1, -1, 3]),
    "an early key": ("k", np.s_[0, 0, 2, 3]),
    "the last key": ("k", np.s_[0, 0, -1, 0]),
    "an early value": ("v", np.s_[0, 0, 2, 3]),
    "the last value": ("v", np.s_[0, 0, -1, 0]),
    "sinks": ("sinks", np.s_[1]),
}


def with_special(case: Case, rng, operand: str, at, value: float) -> Inputs:
    x = make(case, rng)
    getattr(x, operand)[at] = value
    x.arrays = tuple(mx.array(a, mx.float32) for a in (x.q, x.k, x.v))
    x.sinks_arg = mx.array(x.sinks, mx.float32) if case.sinks else None
    return x


@pytest.mark.parametrize("value", (math.nan, math.inf, -math.inf))
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("path", PATHS)
def test_specials_spread_no_further_than_through_stock(path, mask, place, value, rng):
    operand, at = PLACES[place]
    shape = {"Hq": 4, "Hkv": 2, "Lq": 40, "Lk": 70, "D": 16, "Dv": 12}
    case = Case(sinks=operand == "sinks", **shape | PATHS[path] | MASKS[mask])
    x = with_special(case, rng, operand, at, value)
    ours, lse = map(to_numpy, call(case, *x.arrays, x.mask_arg, x.sinks_arg))
    want, want_lse = expected(case, x)
    stock = to_numpy(
        mx.fast.scaled_dot_product_attention(
            *x.arrays, scale=case.scale, mask=x.mask_arg, sinks=x.sinks_arg
        )
    )
    assert not (np.isnan(ours) & ~np.isnan(stock)).any(), "NaN where stock has none"
    # A -inf score of a key that holds a NaN value may be skipped or be 0 * NaN: both are right.
    seen = np.isfinite(want) | np.isfinite(ours)
    np.testing.assert_allclose(
        ours[seen & ~np.isnan(ours)], want[seen & ~np.isnan(ours)],
        rtol=case.tolerance.rtol, atol=case.tolerance.atol,
    )  # fmt: skip
    if not (path == "unfused" and operand == "v"):
        assert (np.isnan(want) <= np.isnan(ours)).all(), "a NaN was lost"
    # Adding -inf to a NaN score hides nothing, on stock ops: lse is NaN where stock's row is.
    assert not (np.isnan(lse) & ~np.isnan(stock).any(-1)).any(), "NaN in lse where stock has none"
    check_lse(lse, np.where(np.isnan(lse), np.nan, want_lse), case.tolerance)
    assert (np.isnan(want_lse) <= np.isnan(lse)).all(), "a NaN of lse was lost"


@pytest.mark.parametrize("value", (math.nan, math.inf, -math.inf))
@pytest.mark.parametrize("path", PATHS)
def test_a_special_in_an_additive_mask(path, value, rng):
    """It reaches the rows of that mask row only; -inf hides the key and reaches nobody."""
    shape = {"Hq": 4, "Hkv": 2, "Lq": 40, "Lk": 70, "D": 16, "Dv": 12}
    case = Case(mask="additive", mask_shape="HQK", **shape | PATHS[path])
    x = make(case, rng)
    x.mask[np.isinf(x.mask)] = -3.0
    x.mask[1, case.Lq - 1, 5] = value
    out, lse = map(to_numpy, call(case, *x.arrays, mx.array(x.mask, mx.float32), None))
    bad = np.zeros(lse.shape, bool)
    bad[:, 1, case.Lq - 1] = value != -math.inf
    np.testing.assert_array_equal(np.isnan(out).all(-1), bad)
    np.testing.assert_array_equal(np.isnan(out).any(-1), bad)
    want, _ = expected(case, x)
    np.testing.assert_allclose(
        out[~bad], want[~bad], rtol=case.tolerance.rtol, atol=case.tolerance.atol
    )


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("hide", ("bool", "additive"))
def test_what_hidden_keys_hold_changes_nothing(hide, path, rng):
    """Finite junk, however large, behind a mask: bitwise the same result."""
    shape = {"Hq": 4, "Hkv": 2, "Lq": 40, "Lk": 70, "D": 16}
    case = Case(mask=hide, mask_shape="K", **shape | PATHS[path])
    x = make(case, rng)
    hidden = ~x.mask if hide == "bool" else np.isneginf(x.mask)
    assert hidden.any()
    q, k, v = x.arrays
    clean = call(case, q, k, v, x.mask_arg, None)
    junk = mx.array(hidden.reshape(1, 1, -1, 1))
    dirty = call(case, q, mx.where(junk, 1e30, k), mx.where(junk, -1e30, v), x.mask_arg, None)
    for a, b in zip(clean, dirty):
        np.testing.assert_array_equal(to_numpy(a), to_numpy(b))


@pytest.mark.parametrize("path", PATHS)
def test_scores_of_a_thousand_do_not_overflow(path, rng):
    """exp(1000) is infinite in float32; the maximum is taken out first, across tiles and chunks."""
    shape = {"Hq": 4, "Hkv": 2, "Lq": 40, "Lk": 70, "D": 16}
    case = Case(**shape | PATHS[path])
    x = make(case, rng)
    q, k, v = x.arrays
    for sign in (1, -1):
        ramp = mx.linspace(900.0, 1000.0, case.Lk)[None, None, :, None] * sign
        out, lse = call(
            case, mx.zeros_like(q) + mx.eye(1, 16)[0] / case.scale, k * 0 + ramp * mx.eye(1, 16)[0],
            v, None, None,
        )  # fmt: skip
        assert np.isfinite(to_numpy(out)).all()
        top = sign * np.linspace(900.0, 1000.0, case.Lk)
        want = top.max() + np.log(np.exp(top - top.max()).sum())
        # 1000 in float32 is exact to 6e-5; q * scale rounds once more
        np.testing.assert_allclose(to_numpy(lse), want, rtol=4 * 2.0**-23)
