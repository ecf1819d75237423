"""How far a result may lie from float64, per dtype. Nothing else in the tests holds a tolerance.

The random inputs have unit spread and scores of spread sqrt(log Lk) (see cases.py), so that the
largest |v| is about 4, the largest |score| about 12, and every row leans on a few keys: losing or
repeating one key moves some rows by O(1), hundreds of times the widest bound below.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

EPS = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7, "float64": 2.0**-52}


class Tolerance(NamedTuple):
    rtol: float  # of one output element
    atol: float  # of one output element
    rms: float  # of a whole output: the root mean square error
    lse_atol: float  # of one lse element
    grad: float  # of one gradient element, relative to the largest of that gradient


# Scores, softmax and sums in float32, whatever the inputs are:
#   rtol  the output is rounded once (eps/2); in float32 a few additions of the same size: 16 eps.
#   atol  P may be rounded to the dtype before P V: eps/2 * sum(P |v|) <= eps/2 * 4, and half more.
#         float32: a score of 12 that is a plain sum of D = 1024 terms carries about sqrt(D/3)
#         errors of eps/2 * 12: the relative error of P is 110 eps, twice that for |v| of 2.
#   rms   rounding errors of eps/2 with random signs have an rms of eps/sqrt(12), twice (P, output).
#         float32: a typical score is a quarter of the largest: 16 eps.
#   lse   an absolute error of the scores is one of lse: float32's 220 eps for every dtype.
#   grad  backward runs on stock ops in the dtype: P, dP and dS are each rounded to it, and a sum of
#         Lq or Lk such terms follows, which may cancel: 16 eps.
# float32 grad: the errors of S become errors of P, then two sums over <= 200 terms: 256 eps.
def in_float32(dtype: str) -> Tolerance:
    eps, lse = EPS[dtype], 220 * EPS["float32"]
    if dtype == "float32":
        return Tolerance(rtol=16 * eps, atol=220 * eps, rms=16 * eps, lse_atol=lse, grad=256 * eps)
    return Tolerance(rtol=eps, atol=3 * eps, rms=eps, lse_atol=lse, grad=16 * eps)


TOLERANCES = {
    "float32": in_float32("float32"),
    "float16": in_float32("float16"),
    "bfloat16": in_float32("bfloat16"),
}

# Stock ops keep q * scale and the scores in the dtype: scores of 12 carry eps/2 * 12 from each,
# which becomes the relative error of P and the error of lse; a typical score is a quarter of that.
STOCK_TOLERANCES = {
    "float32": TOLERANCES["float32"],
    "float64": in_float32("float32"),  # on the CPU MLX's float64 exp is as accurate as float32's
    **{
        dtype: Tolerance(
            rtol=EPS[dtype],
            atol=24 * EPS[dtype],
            rms=4 * EPS[dtype],
            lse_atol=12 * EPS[dtype],
            grad=64 * EPS[dtype],
        )
        for dtype in ("float16", "bfloat16")
    },
}


def same_specials(actual: np.ndarray, expected: np.ndarray, what: str) -> None:
    """NaN exactly where NaN is expected, and each infinity where that infinity is."""
    for name, at in (("NaN", np.isnan), ("inf", np.isposinf), ("-inf", np.isneginf)):
        np.testing.assert_array_equal(at(actual), at(expected), err_msg=f"{what}: {name} pattern")


def check(actual, expected, tolerance: Tolerance, what: str = "out") -> None:
    """Every element within rtol and atol, and the whole within rms."""
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape} != {expected.shape}"
    same_specials(actual, expected, what)
    finite = np.isfinite(expected)
    actual, expected = actual[finite], expected[finite]
    np.testing.assert_allclose(
        actual, expected, rtol=tolerance.rtol, atol=tolerance.atol, err_msg=what
    )
    n = max(1, expected.size)
    rms = np.linalg.norm(actual - expected) / n**0.5
    # An rms over n elements is itself uncertain by about 1/sqrt(n).
    assert rms <= tolerance.rms * (1 + 4 / n**0.5), f"{what}: rms error {rms:.2e} over {n} elements"


def check_lse(actual, expected, tolerance: Tolerance) -> None:
    assert actual.shape == expected.shape, f"lse: shape {actual.shape} != {expected.shape}"
    same_specials(actual, expected, "lse")
    finite = np.isfinite(expected)
    np.testing.assert_allclose(
        actual[finite],
        expected[finite],
        rtol=16 * EPS["float32"],
        atol=tolerance.lse_atol,
        err_msg="lse",
    )


def check_grad(actual, expected, tolerance: Tolerance, what: str) -> None:
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape} != {expected.shape}"
    same_specials(actual, expected, what)
    finite = np.isfinite(expected)
    np.testing.assert_allclose(
        actual[finite],
        expected[finite],
        rtol=0,
        atol=tolerance.grad * max(1.0, np.abs(expected[finite]).max(initial=0.0)),
        err_msg=what,
    )
