"""The reference itself: against stock in float64, its gradients against finite differences."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
import reference
from cases import Case, expected, make, options, replace, to_numpy
from tolerances import EPS, STOCK_TOLERANCES, check, check_grad

SMALL = Case(B=2, Hq=4, Hkv=2, Lq=5, Lk=7, D=6, Dv=3, dtype="float64", path="stock")

STOCK_CASES = [
    SMALL,
    replace(SMALL, mask="causal"),
    replace(SMALL, mask="additive", mask_shape="BHQK", sinks=True),
    replace(SMALL, mask="additive", mask_shape="H1K", Hkv=1),
    replace(SMALL, mask="bool", mask_shape="B11K"),
    replace(SMALL, mask="bool", mask_shape="1HQ1", Hq=2, sinks=True),
    replace(SMALL, Lq=7, Lk=5),
]


@pytest.mark.parametrize("case", STOCK_CASES, ids=str)
def test_agrees_with_stock_in_float64(case, rng):
    x = make(case, rng)
    stock = mx.fast.scaled_dot_product_attention(
        *x.arrays, scale=case.scale, mask=x.mask_arg, sinks=x.sinks_arg, stream=mx.cpu
    )
    out, lse = expected(case, x)
    sees = lse > -np.inf if not case.sinks else np.ones_like(lse, bool)
    if case.mask == "bool":  # stock gives the mean of v, or NaN, to a row that sees nothing
        sees = reference.visible((2, case.Hq, 5, 7), x.mask, None, None).any(-1)
    elif case.mask == "additive":
        sees &= np.isfinite(np.broadcast_to(x.mask, (2, case.Hq, 5, 7))).any(-1)
    assert sees.any()
    check(to_numpy(stock)[sees], out[sees], STOCK_TOLERANCES["float64"])


def test_definition_by_hand():
    """Two keys of score 0 and log 3, a sink of log 4: weights 1/8 and 3/8; lse log 8."""
    q = np.ones((1, 1, 1, 1))
    k = np.array([0.0, np.log(3)]).reshape(1, 1, 2, 1)
    v = np.array([8.0, 16.0]).reshape(1, 1, 2, 1)
    out, lse = reference.attention(q, k, v, scale=1.0, sinks=np.log([4.0]))
    np.testing.assert_allclose(out.item(), 1 + 6)
    np.testing.assert_allclose(lse.item(), np.log(8))


def test_window_sees_its_own_key_and_the_ones_before():
    seen = reference.visible((1, 1, 3, 5), "causal", 2, None)[0, 0]
    np.testing.assert_array_equal(seen, [[0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 1]])


def test_a_row_that_sees_nothing():
    q, k, v = np.ones((1, 2, 3, 4)), np.ones((1, 1, 2, 4)), np.ones((1, 1, 2, 4))
    out, lse = reference.attention(q, k, v, scale=1.0, mask="causal")
    assert (out[:, :, 0] == 0).all() and (lse[:, :, 0] == -np.inf).all()
    out, lse = reference.attention(q, k, v, scale=1.0, mask="causal", sinks=np.array([1.0, 2.0]))
    assert (out[:, :, 0] == 0).all() and (lse[0, :, 0] == [1.0, 2.0]).all()


def test_a_hidden_key_may_hold_anything():
    q, k, v = np.ones((1, 1, 2, 1)), np.ones((1, 1, 2, 1)), np.ones((1, 1, 2, 1))
    k[..., 1, :] = v[..., 1, :] = np.nan
    out, lse = reference.attention(q, k, v, scale=1.0, mask="causal")
    np.testing.assert_array_equal(np.isnan(out).ravel(), [False, True])
    np.testing.assert_array_equal(np.isnan(lse).ravel(), [False, True])


GRADIENT_CASES = [
    SMALL,
    replace(SMALL, mask="causal", window=2, softcap=2.0, sinks=True),
    replace(SMALL, mask="additive", mask_shape="B1QK", softcap=3.0),
    replace(SMALL, mask="bool", mask_shape="QK", sinks=True),
]


@pytest.mark.parametrize("case", GRADIENT_CASES, ids=str)
def test_gradients_agree_with_finite_differences(case, rng):
    x = make(case, rng)
    how = options(case)
    out, lse = expected(case, x)
    d_out = rng.standard_normal(out.shape)
    d_lse = rng.standard_normal(lse.shape)

    def loss(q, k, v, mask, sinks):
        out, lse = reference.attention(q, k, v, mask=mask, sinks=sinks, **how)
        return (out * d_out).sum() + (np.where(lse == -np.inf, 0, lse) * d_lse).sum()

    at = {"q": x.q, "k": x.k, "v": x.v, "mask": x.mask, "sinks": x.sinks}
    grads = reference.gradients(
        x.q, x.k, x.v, d_out, d_lse, mask=x.mask, sinks=x.sinks, **how
    )._asdict()
    h = EPS["float64"] ** (1 / 3)
    for name, grad in grads.items():
        if grad is None:
            continue
        step = h * rng.standard_normal(at[name].shape)
        with np.errstate(invalid="ignore"):
            up = loss(**{**at, name: at[name] + step})
            down = loss(**{**at, name: at[name] - step})
        # Central differences: an error of h^2, and of eps / h
        np.testing.assert_allclose(
            (up - down) / 2, (grad * step).sum(), rtol=1e3 * h**2, atol=1e3 * h**3, err_msg=name
        )


def test_gradients_agree_with_stock_in_float64(rng):
    case = replace(SMALL, mask="additive", mask_shape="HQK")
    x = make(case, rng)
    mask = np.where(np.isfinite(x.mask), x.mask, -5.0)
    d_out = rng.standard_normal((2, 4, 5, 3))

    def stock(q, k, v, mask):
        return mx.fast.scaled_dot_product_attention(
            q, k, v, scale=case.scale, mask=mask, stream=mx.cpu
        )

    with mx.stream(mx.cpu):
        d_array = mx.array(d_out, mx.float64)
        _, grads = mx.vjp(stock, [*x.arrays, mx.array(mask, mx.float64)], [d_array])
    ours = reference.gradients(x.q, x.k, x.v, d_out, mask=mask, scale=case.scale)
    for name, grad in zip(("q", "k", "v", "mask"), grads):
        check_grad(to_numpy(grad), getattr(ours, name), STOCK_TOLERANCES["float64"], name)
